"""Two models measured on the same items: how much better one is, and how sure that is.

Intervals are of the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13) over items, each of which keeps the scores of both models: what is hard for both says nothing of
their difference. What an item is, its evaluator says: of retrieval it is a picture together with its
captions, so that captions of one picture are not taken for independent ones (where pictures have unequally
many, the number of all captions stays as it is). Items of one cluster, such as twins, are drawn together.
The gallery stays as it is too: queries alone are drawn
again. Drawn into the gallery twice, an item would tie with itself, and the gallery would have fewer others to
be found instead, so that recall there is that of another task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DRAWS = 10_000
# resampled numbers at a time: memory, not the result
_BLOCK = 2**22
_MIDDLE = (0.025, 0.975)


@dataclass(frozen=True)
class Difference:
    """Of a metric that is a mean over items: b - a and b / a, their 95 % intervals, and over how many items.

    ratio, ratio_low, ratio_high: None where a score is below 0, and where a has nothing to be compared with:
        in more than one of 40 draws none of the items that it scores on
    """

    mean: float
    low: float
    high: float
    items: int
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None

    @property
    def sure(self) -> bool:
        """Whether the interval of b - a leaves 0 out."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a_correct: npt.NDArray[np.bool_], b_correct: npt.NDArray[np.bool_], *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a - b in percentage points and its 95 % interval, resampling items (the pairs stay
    together)."""
    difference = a_correct.astype(np.float64) - b_correct.astype(np.float64)
    low, high = _interval(_means(difference[:, None], draws, seed)[:, 0])
    return 100 * float(difference.mean()), 100 * low, 100 * high


def paired_difference(
    a: Array,
    a_index: npt.NDArray[np.int64],
    b: Array,
    b_index: npt.NDArray[np.int64],
    cluster: npt.NDArray[np.int64] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference | None:
    """b against a over the items that both have, in the metric's own unit; None where fewer than two are
    shared.

    a, b:    (N,), (M,) scores of the items numbered a_index, b_index; those without one (nan) are left out
    cluster: (N,) of a's items; None where each stands alone
    """
    kept = np.isfinite(a)
    a_index, a, cluster = a_index[kept], a[kept], None if cluster is None else cluster[kept]
    b_index, b = b_index[np.isfinite(b)], b[np.isfinite(b)]
    _, in_a, in_b = np.intersect1d(a_index, b_index, return_indices=True)
    together = None if cluster is None else cluster[in_a]
    return paired_differences({"": a[in_a]}, {"": b[in_b]}, together, draws=draws, seed=seed).get("")


def paired_differences(
    a: Mapping[str, Array],
    b: Mapping[str, Array],
    cluster: npt.NDArray[np.int64] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Difference]:
    """b against a in each metric that both have: the same items are drawn for all of them.

    a, b:    (N,) scores of the same items in the same order, by metric
    cluster: (N,) numbers that are the same of items which are drawn together; None where each stands alone

    A metric in which an item has no score (nan) is left out, and all are where there are fewer than two
    items.
    """
    shared = [key for key in a if key in b and np.isfinite(a[key]).all() and np.isfinite(b[key]).all()]
    if not shared or len(a[shared[0]]) < 2:
        return {}
    # the difference itself, not two means: it is 0 to the last bit where the models do the same
    scores = np.stack([column for key in shared for column in (a[key], b[key] - a[key])], axis=1)
    means = _means(scores, draws, seed, cluster)
    found = {}
    for place, key in enumerate(shared):
        columns = slice(2 * place, 2 * place + 2)
        never_below = bool((a[key] >= 0).all() and (b[key] >= 0).all())
        found[key] = _difference(scores[:, columns].mean(axis=0), means[:, columns], len(scores), never_below)
    return found


def _difference(mean: Array, means: Array, items: int, never_below: bool) -> Difference:
    """mean (2,): of a and of b - a; means (draws, 2): the same of each draw; never_below: no score is below
    0."""
    low, high = _interval(means[:, 1])
    found = Difference(float(mean[1]), low, high, items)
    some = means[:, 0] > 0
    # the upper end must not depend on draws whose ratio is infinite
    if not never_below or some.mean() < 0.975:
        return found
    ratios = 1 + np.divide(means[:, 1], means[:, 0], where=some, out=np.full(len(means), np.inf))
    low, high = np.quantile(ratios, _MIDDLE, method="inverted_cdf")
    return replace(found, ratio=1 + float(mean[1] / mean[0]), ratio_low=float(low), ratio_high=float(high))


def _means(scores: Array, draws: int, seed: int, cluster: npt.NDArray[np.int64] | None = None) -> Array:
    """(draws, K): means of (N, K) scores over as many clusters of rows as there are, drawn with replacement;
    without `cluster` over N of the rows."""
    sizes = None
    if cluster is not None:
        _, place = np.unique(cluster, return_inverse=True)
        sizes = np.bincount(place).astype(np.float64)
        sums = np.zeros((len(sizes), scores.shape[1]))
        np.add.at(sums, place, scores)
        scores = sums
    generator, count = np.random.default_rng(seed), len(scores)
    rows = max(1, _BLOCK // count)
    found = np.empty((draws, scores.shape[1]))
    for start in range(0, draws, rows):
        drawn = generator.integers(0, count, (min(rows, draws - start), count))
        drawn += count * np.arange(len(drawn))[:, None]
        # how often each row was drawn: one product then serves all columns
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        times = times.astype(np.float64)
        items = count if sizes is None else (times @ sizes)[:, None]
        found[start : start + rows] = times @ scores / items
    return found


def _interval(means: Array) -> tuple[float, float]:
    """The middle 95 % of (draws,) numbers."""
    low, high = np.quantile(means, _MIDDLE)
    return float(low), float(high)
