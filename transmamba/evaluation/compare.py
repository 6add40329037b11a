"""Two models measured on the same items: how much better one is, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DRAWS = 10_000
# resampled numbers at a time: memory, not the result
_BLOCK = 2**22


@dataclass(frozen=True)
class Difference:
    """Of a metric that is a mean over items: b - a, its 95 % interval, and over how many items."""

    mean: float
    low: float
    high: float
    items: int

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a_correct: npt.NDArray[np.bool_], b_correct: npt.NDArray[np.bool_], *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a - b in percentage points and its 95 % interval, resampling items (the pairs stay
    together)."""
    difference = a_correct.astype(np.float64) - b_correct.astype(np.float64)
    low, high = _interval(difference, draws, seed)
    return 100 * float(difference.mean()), 100 * low, 100 * high


def paired_difference(
    a: Array,
    a_index: npt.NDArray[np.int64],
    b: Array,
    b_index: npt.NDArray[np.int64],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference | None:
    """b - a over the items that both have, in the metric's own unit; None where fewer than two are shared.

    a, b: (N,), (M,) scores of the items numbered a_index, b_index; items without a score (nan) are left out
    """
    a_index, a = a_index[np.isfinite(a)], a[np.isfinite(a)]
    b_index, b = b_index[np.isfinite(b)], b[np.isfinite(b)]
    shared, in_a, in_b = np.intersect1d(a_index, b_index, return_indices=True)
    if len(shared) < 2:
        return None
    difference = b[in_b] - a[in_a]
    low, high = _interval(difference, draws, seed)
    return Difference(float(difference.mean()), low, high, len(shared))


def _interval(difference: Array, draws: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of (N,) numbers, by resampling them."""
    generator, count = np.random.default_rng(seed), len(difference)
    rows = max(1, _BLOCK // count)
    means = np.concatenate(
        [
            difference[generator.integers(0, count, (min(rows, draws - start), count))].mean(axis=1)
            for start in range(0, draws, rows)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
