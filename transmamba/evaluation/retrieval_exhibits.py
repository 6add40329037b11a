"""What retrieval is shown by: how far down the right items are, and what was found instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.task import Answer, Listing, Sample
from .embedded import Embeddings
from .ranks import Ints, Ranks

_BOUNDS = (1, 5, 10, 50, 100, 500, 1000)


@dataclass(frozen=True)
class Found:
    """Of one model.

    i2t:   of the pictures that have captions, `asked` (A,), among the captions
    t2i:   of the captions among the pictures
    image, text: embeddings (P, E) of the pictures numbered `index` (P,), (M, E) of the captions of those
        numbered `group` (M,), which is ascending
    """

    i2t: Ranks
    t2i: Ranks
    image: Embeddings
    text: Embeddings
    index: Ints
    group: Ints
    asked: Ints


def distribution(found: Found, title: str, visual: str) -> Listing:
    """How many of the queries have a rank of 1, up to 5, up to 10 and so on; fewer bounds in a small
    gallery."""
    ways = ((found.i2t.expected(), len(found.group)), (found.t2i.expected(), len(found.index)))
    last = next((bound for bound in _BOUNDS if bound >= max(size for _, size in ways)), None)
    bounds = [bound for bound in _BOUNDS if last is None or bound < last]
    rows, lower = [], 0.0
    for upper in (*bounds, np.inf):
        shares = [100 * ((ranks > lower) & (ranks <= upper)).mean() for ranks, _ in ways]
        name = "1" if upper == 1 else f"above {lower:,.0f}" + (f" to {upper:,}" if upper < np.inf else "")
        rows.append((name, *(f"{share:.2f}" for share in shares)))
        lower = float(upper)
    return Listing(title, ("rank", f"{visual} to text %", f"text to {visual} %"), rows)


def sample(
    group: str,
    place: int,
    found: Mapping[str, Found],
    captions: Callable[[int], Sequence[str]],
    picture: npt.NDArray[np.uint8],
) -> Sample:
    """The picture asked at a place, all that is said of it, and the caption that each model finds first."""
    number = int(next(iter(found.values())).asked[place])
    return Sample(
        group=group,
        text="\n".join(captions(number)),
        answers=tuple(_answer(name, place, number, each, captions) for name, each in found.items()),
        picture=picture,
    )


def _answer(
    name: str, place: int, number: int, found: Found, captions: Callable[[int], Sequence[str]]
) -> Answer:
    first = int(found.i2t.top[place, 0])
    owner = int(found.group[first])
    text = captions(owner)[first - int(np.searchsorted(found.group, owner))]
    if owner == number:
        return Answer(name, text, True)
    return Answer(name, f"{text} (its own: rank {found.i2t.expected()[place]:,g})", False)
