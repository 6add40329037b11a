"""Intervals of paired differences, against what they should cover and against other formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from transmamba.evaluation.compare import paired_bootstrap, paired_difference, paired_differences


def test_paired_bootstrap_covers_the_difference() -> None:
    """Of 40 samples with a true difference of 10 points, about 95 % of the intervals hold it."""
    held = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        a, b = generator.random(400) < 0.8, generator.random(400) < 0.7
        mean, low, high = paired_bootstrap(a, b, draws=500, seed=seed)
        assert low <= mean <= high and mean == pytest.approx(100 * (a.mean() - b.mean()))
        held += low <= 10 <= high
    assert held >= 35


def test_paired_bootstrap_keeps_pairs_together() -> None:
    """Two models that err on the same images: no variance, though each of them has some."""
    correct = np.random.default_rng(0).random(300) < 0.5
    assert paired_bootstrap(correct, correct, draws=50) == (0, 0, 0)


def test_interval_width_is_that_of_the_normal_approximation() -> None:
    generator = np.random.default_rng(5)
    a, b = generator.random(2000) < 0.8, generator.random(2000) < 0.7
    _, low, high = paired_bootstrap(a, b, draws=2000)
    difference = a.astype(float) - b.astype(float)
    assert high - low == pytest.approx(100 * 2 * 1.96 * difference.std() / np.sqrt(2000), rel=0.1)


def test_resampling_in_blocks_draws_what_one_by_one_would() -> None:
    """The numbers of earlier pages stand: draw after draw from one generator."""
    generator = np.random.default_rng(1)
    a, b = generator.random(700) < 0.6, generator.random(700) < 0.5
    difference, again = a.astype(float) - b.astype(float), np.random.default_rng(7)
    means = [difference[again.integers(0, 700, 700)].mean() for _ in range(9000)]
    wanted = 100 * np.quantile(means, [0.025, 0.975])
    assert paired_bootstrap(a, b, draws=9000, seed=7)[1:] == pytest.approx(wanted, abs=1e-12)


def test_only_items_that_both_have_are_compared() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([50.0, 2.5, 5.0, np.nan])
    found = paired_difference(a, np.array([10, 11, 12, 13]), b, np.array([99, 10, 12, 13]), draws=200)
    assert found is not None and found.items == 2
    assert found.mean == pytest.approx(((2.5 - 1) + (5 - 3)) / 2) and found.low >= 1.5 and found.high <= 2.0
    assert found.sure
    assert paired_difference(a, np.arange(4), b, np.arange(10, 14)) is None


# --- difference and ratio of several metrics ---


def made_up_scores(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """(teacher, student): percent, right 70 and 66 % of the time, mostly of the same items."""
    generator = np.random.default_rng(seed)
    hard = generator.random(count)
    noise = generator.normal(0, 0.1, (2, count))
    return 100.0 * (hard + noise[0] < 0.7), 100.0 * (hard + noise[1] < 0.66)


def test_difference_and_ratio_are_those_of_scipy() -> None:
    a, b = made_up_scores(0)
    found = paired_differences({"x": a}, {"x": b})["x"]
    assert found.mean == pytest.approx(b.mean() - a.mean()) and found.items == 400
    assert found.ratio == pytest.approx(b.mean() / a.mean())

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return y.mean(axis=axis) - x.mean(axis=axis)

    def ratio(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return y.mean(axis=axis) / x.mean(axis=axis)

    mine = {difference: (found.low, found.high), ratio: (found.ratio_low, found.ratio_high)}
    for statistic, interval in mine.items():
        theirs = stats.bootstrap(
            (a, b), statistic, paired=True, vectorized=True, n_resamples=9999, method="percentile", rng=1
        )
        low, high = theirs.confidence_interval
        assert interval == pytest.approx((low, high), abs=0.08 * (high - low))
        # resampled apart from each other, the models' differences would be far less sure
        apart = stats.bootstrap(
            (a, b), statistic, paired=False, vectorized=True, n_resamples=999, method="percentile", rng=1
        )
        assert high - low < 0.6 * (apart.confidence_interval.high - apart.confidence_interval.low)


def test_the_interval_of_a_ratio_covers_it() -> None:
    """Of 60 samples with a true ratio of 0.875, about 95 % of the intervals hold it."""
    held = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        a, b = 100.0 * (generator.random((2, 300)) < [[0.8], [0.7]])
        found = paired_differences({"x": a}, {"x": b}, draws=500, seed=seed)["x"]
        assert found.ratio_low is not None and found.ratio_high is not None
        held += found.ratio_low <= 0.875 <= found.ratio_high
    assert 53 <= held <= 60


def test_metrics_together_are_each_by_itself() -> None:
    (a, b), (c, d) = made_up_scores(0), made_up_scores(1)
    together = paired_differences({"x": a, "y": c, "mine": a}, {"x": b, "y": d, "theirs": b}, draws=300)
    assert together.keys() == {"x", "y"}
    for key, one, other in (("x", a, b), ("y", c, d)):
        alone = paired_difference(one, np.arange(400), other, np.arange(400), draws=300)
        assert vars(together[key]) == pytest.approx(vars(alone))


def test_twins_are_drawn_together() -> None:
    """Each item twice says no more than once; told nothing, the interval would be narrower by sqrt(2)."""
    (a, b), twice = made_up_scores(0), np.repeat(np.arange(400), 2)
    once = paired_differences({"x": a}, {"x": b})["x"]
    together = paired_differences({"x": a[twice]}, {"x": b[twice]}, twice)["x"]
    assert vars(together) == pytest.approx({**vars(once), "items": 800})
    apart = paired_differences({"x": a[twice]}, {"x": b[twice]})["x"]
    assert (apart.high - apart.low) * 2**0.5 == pytest.approx(once.high - once.low, rel=0.05)


def test_clusters_of_any_size_as_a_slow_bootstrap_has_them() -> None:
    a, b = made_up_scores(3, 90)
    cluster = np.random.default_rng(1).integers(0, 25, 90)
    found = paired_difference(a, np.arange(90), b, np.arange(90), cluster)
    assert found is not None
    generator, members = np.random.default_rng(2), [np.flatnonzero(cluster == c) for c in np.unique(cluster)]
    draws = []
    for _ in range(4000):
        drawn = np.concatenate([members[c] for c in generator.integers(0, len(members), len(members))])
        draws.append(b[drawn].mean() - a[drawn].mean())
    low, high = np.quantile(draws, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_equal_models_differ_by_nothing() -> None:
    a, _ = made_up_scores(2)
    found = paired_differences({"x": a}, {"x": a.copy()}, draws=50)["x"]
    assert (found.mean, found.low, found.high) == (0, 0, 0) and not found.sure
    assert (found.ratio, found.ratio_low, found.ratio_high) == (1, 1, 1)


def test_no_ratio_to_nothing_and_none_of_what_has_signs() -> None:
    zero, some = np.zeros(50), np.arange(50.0)
    rare, seldom = some < 1, some < 5  # not drawn in a third of the draws, in one of 200
    scores = {"zero": zero, "rare": 1.0 * rare, "seldom": 1.0 * seldom, "signed": some - 10}
    scores |= {"fine": some + 1, "nan": some * np.nan}
    found = paired_differences(scores, dict.fromkeys(scores, some), draws=1000)
    assert [key for key, each in found.items() if each.ratio is not None] == ["seldom", "fine"]
    assert np.isfinite([found[key].ratio_high for key in ("seldom", "fine")]).all()
    assert found["zero"].mean == pytest.approx(some.mean()) and "nan" not in found
    assert all((each.ratio_low is None) == (each.ratio is None) for each in found.values())
    assert paired_differences({"x": some[:1]}, {"x": some[:1]}) == {}
