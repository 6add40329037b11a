"""Twins: two items that differ in one thing, such as the order of events, and their captions likewise.

Does an item fit its own caption better than its twin's, and a caption its own item better than the twin? As
the text and the image score of Winoground (Thrush et al., CVPR 2022), but each comparison counts by itself,
not both of a pair together, so that chance is 50 %.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..core.task import Metric
from .ranks import STEPS, Floats, Ints
from .retrieval_exhibits import Found

Twin = Callable[[int], int]


def metrics_for(visual: str) -> tuple[Metric, ...]:
    return (
        Metric(key="twin_i2t", label=f"{visual} to text, of twins %"),
        Metric(key="twin_t2i", label=f"text to {visual}, of twins %"),
    )


def twin_scores(found: Found, twin: Twin) -> dict[str, Floats]:
    """By metric, (A,) of the items with captions, 0 to 100: the share of an item's captions, each beside the
    twin's caption of the same place, for which the own one is the more alike; of equals a half.

    twin: the number of an item's twin, which is there and has captions too
    """
    scores: dict[str, list[float]] = {"twin_i2t": [], "twin_t2i": []}
    for number in found.asked:
        other = twin(int(number))
        image, image_of_twin = (found.image[np.searchsorted(found.index, n)] for n in (number, other))
        own, of_twin = (found.text[found.group == n] for n in (number, other))
        assert len(of_twin), "the caller has looked"
        count = min(len(own), len(of_twin))
        scores["twin_i2t"].append(_won(own[:count] @ image, of_twin[:count] @ image))
        scores["twin_t2i"].append(_won(own @ image, own @ image_of_twin))
    return {key: np.array(values, dtype=np.float64) for key, values in scores.items()}


def pairs_of(index: Ints, twin: Twin) -> Ints:
    """(A,) of items' numbers (A,): the smaller one of each and its twin, so that twins have the same."""
    return np.array([min(int(number), twin(int(number))) for number in index], dtype=np.int64)


def _won(own: Floats, other: Floats) -> float:
    """How often `own` is above `other`, in %, up to rounding; nan where one is not finite."""
    lead = np.round((own.astype(np.float64) - other) * STEPS)
    return float(50 * (1 + np.sign(lead)).mean())
