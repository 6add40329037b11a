"""Intervals of paired differences, against what they should cover and against other formulas."""

from __future__ import annotations

import numpy as np
import pytest

from transmamba.evaluation.compare import paired_bootstrap, paired_difference


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
