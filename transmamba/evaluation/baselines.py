"""Predictors that learn each prompt anew: at every example all those before it, and nothing else.

Shapes: N prompts, n examples, d dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core.batch import Batch
from ..data.functions.prompts import Examples, Function

Floats = npt.NDArray[np.float64]

NEIGHBOURS = 3
# of Garg et al., arXiv 2208.01066; the one with the least error over all prompts is shown
ALPHAS = (1.0, 0.1, 0.01, 0.001, 0.0001)
TREE_DEPTH = 4
ZERO = "zero"


def least_squares(x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """w x with the smallest w of those with the least squares."""
    made = torch.zeros_like(y)
    for i in range(1, y.shape[1]):
        # an example that is not seen is a row of zeros, which changes neither
        rows, right = x[:, :i] * seen[:, :i, None], y[:, :i] * seen[:, :i]
        w = torch.linalg.lstsq(rows, right[..., None], driver="gelsd").solution[..., 0]
        made[:, i] = (w * x[:, i]).sum(dim=-1)
    return made


def nearest(x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """The mean of y over the three nearest x; over all where there are fewer, 0 where there are none."""
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    before = torch.ones_like(apart, dtype=torch.bool).tril(-1) & seen[:, None]
    found = apart.where(before, torch.inf).topk(min(NEIGHBOURS, y.shape[1]), largest=False)
    there = found.values.isfinite()
    of = y[:, None].expand_as(apart).gather(2, found.indices) * there
    return of.sum(dim=-1) / there.sum(dim=-1).clamp_min(1)


def fitted(make: Callable[[], Any], x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """By a regressor of scikit-learn's interface, made anew each time; 0 where there is no example yet."""
    made = torch.zeros_like(y)
    for row in range(len(y)):
        for i in range(1, y.shape[1]):
            some = seen[row, :i]
            if some.any():
                model = make().fit(x[row, :i][some].numpy(), y[row, :i][some].numpy())
                made[row, i] = float(model.predict(x[row, i : i + 1].numpy())[0])
    return made


def lasso(x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """scikit-learn's Lasso without an intercept, of those of `ALPHAS` the one that was best."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few examples, little penalty
        made = [fitted(lambda: Lasso(alpha=a, fit_intercept=False), x, y, seen) for a in ALPHAS]  # noqa: B023
    return min(made, key=lambda each: float(((each - y).square() * seen).sum()))


def tree(x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """scikit-learn's greedy tree, of depth 4."""
    from sklearn.tree import DecisionTreeRegressor

    return fitted(lambda: DecisionTreeRegressor(max_depth=TREE_DEPTH, random_state=0), x, y, seen)


def boosted(x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """XGBoost's trees, as it comes."""
    from xgboost import XGBRegressor

    return fitted(lambda: XGBRegressor(n_jobs=1, random_state=0), x, y, seen)


BASELINES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "least_squares": least_squares,
    "lasso": lasso,
    "nearest": nearest,
    "tree": tree,
    "boosted": boosted,
}
# what is not in the base installation: (module, extra)
_NEEDS = {"lasso": ("sklearn", "data"), "tree": ("sklearn", "data"), "boosted": ("xgboost", "boosted")}


def baseline_problems(names: Sequence[str], functions: Sequence[Function]) -> list[str]:
    """What is wrong with which there are."""
    problems = []
    for name in dict.fromkeys(names):
        if name not in BASELINES:
            problems.append(f"baselines has {name}; write some of {', '.join(BASELINES)}")
        elif name in _NEEDS and find_spec(_NEEDS[name][0]) is None:
            module, extra = _NEEDS[name]
            problems.append(
                f"baselines has {name}, which needs {module}: pip install 'transmamba[{extra}]', or leave it "
                "out"
            )
        if names.count(name) > 1:
            problems.append(f"baselines has {name} twice; write each once")
    if names and not any(map(has_baselines, functions)):
        problems.append(f"baselines has {names[0]}, but no function here has real values; leave them out")
    return problems


def has_baselines(function: Function) -> bool:
    """Whether its prompts are examples of real values."""
    return isinstance(function, Examples) and not function.signs and function.steps == 1


def baseline_errors(names: Sequence[str], function: Function, batch: Batch) -> dict[str, Floats]:
    """By name, and `zero` for what says 0, the squared errors (N, n) at the examples at which something is
    asked, 0 elsewhere. Outliers, of which nothing is asked, are known as such and left out."""
    length, d = function.shape.length, function.shape.width
    x = batch.inputs["points"][:, :length:2, :d].double()
    y = batch.targets["values"][:, :length:2, 0].double()
    seen = batch.targets["asked"][:, :length:2, 0]
    made = {ZERO: torch.zeros_like(y), **{name: BASELINES[name](x, y, seen) for name in names}}
    return {
        name: ((each - y).square() * seen).div(function.scale).numpy().astype(np.float64)
        for name, each in made.items()
    }
