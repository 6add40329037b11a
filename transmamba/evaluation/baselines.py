"""Predictors that learn each prompt anew."""

from __future__ import annotations

from collections.abc import Sequence

NAMES = ("least_squares", "lasso", "nearest", "tree", "boosted")


def names_problems(names: Sequence[str]) -> list[str]:
    """What is wrong with which there are."""
    unknown = [name for name in names if name not in NAMES]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"baselines has {name}; write some of {', '.join(NAMES)}" for name in unknown] + [
        f"baselines has {name} twice; write each once" for name in twice
    ]
