"""What else predicts a prompt's values, against scikit-learn on fixed prompts, and the score relative to
it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transmamba.core.batch import Batch
from transmamba.core.output import Logits
from transmamba.core.task import Pass
from transmamba.data.functions.mqar import MQAR
from transmamba.data.functions.outliers import ManyOutlier
from transmamba.data.functions.regression import DecisionTree, Linear, SparseLinear
from transmamba.errors import WrongValues
from transmamba.evaluation.baselines import ALPHAS, BASELINES, baseline_errors
from transmamba.tasks.in_context import InContextConfig

sklearn = pytest.importorskip("sklearn")


def prompts(d: int = 3, n: int = 9, rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(rows, n, d).double()
    y = torch.einsum("rnd,rd->rn", x, torch.randn(rows, d).double()) + 0.1 * torch.randn(rows, n)
    return x, y, torch.rand(rows, n) < 0.8


def of_sklearn(make: Callable[[int], Any], x: Tensor, y: Tensor, seen: Tensor) -> np.ndarray:
    """At each example what a model says that was made for so many and saw those before it."""
    made = np.zeros(y.shape)
    for row in range(len(y)):
        for i in range(y.shape[1]):
            before = [j for j in range(i) if seen[row, j]]
            if before:
                model = make(len(before)).fit(x[row][before].numpy(), y[row][before].numpy())
                made[row, i] = model.predict(x[row, i][None].numpy())[0]
    return made


def models(name: str) -> Callable[[int], Any]:
    from sklearn.linear_model import LinearRegression
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.tree import DecisionTreeRegressor

    makers: dict[str, Callable[[int], Any]] = {
        "least_squares": lambda count: LinearRegression(fit_intercept=False),
        "nearest": lambda count: KNeighborsRegressor(n_neighbors=min(3, count)),
        "tree": lambda count: DecisionTreeRegressor(max_depth=4, random_state=0),
    }
    return makers[name]


@pytest.mark.parametrize("name", ["least_squares", "nearest", "tree"])
def test_a_baseline_is_scikit_learn_s(name: str) -> None:
    given = prompts()
    np.testing.assert_allclose(
        BASELINES[name](*given).numpy(), of_sklearn(models(name), *given), rtol=1e-6, atol=1e-9
    )


def test_lasso_is_scikit_learn_s_with_the_best_penalty() -> None:
    from sklearn.linear_model import Lasso

    x, y, seen = prompts()
    every = [of_sklearn(lambda _, a=a: Lasso(alpha=a, fit_intercept=False), x, y, seen) for a in ALPHAS]
    errors = [((each - y.numpy()) ** 2 * seen.numpy()).sum() for each in every]
    np.testing.assert_allclose(
        BASELINES["lasso"](x, y, seen).numpy(), every[int(np.argmin(errors))], rtol=1e-9
    )


def test_least_squares_is_exact_once_there_are_as_many_examples_as_dimensions() -> None:
    task = InContextConfig(function=Linear(d=4, points=9)).build(None)
    found = baseline_errors(["least_squares"], Linear(d=4, points=9), task.test_batch(0, np.arange(20)))
    assert found["least_squares"][:, 4:].max() < 1e-6 < found["least_squares"][:, 2].mean()
    assert found["zero"].mean() == pytest.approx(1, abs=0.25), "errors are divided by d"


def test_outliers_are_neither_seen_nor_asked() -> None:
    function = ManyOutlier(d=3, points=40, share=0.5)
    batch = InContextConfig(function=function).build(None).test_batch(0, np.arange(10))
    found, asked = (
        baseline_errors(["least_squares"], function, batch),
        batch.targets["asked"][:, ::2, 0].numpy(),
    )
    assert not found["least_squares"][~asked].any()
    known = (asked.cumsum(axis=1) - asked >= 3) & asked
    assert known.sum() > 50 and found["least_squares"][known].max() < 1e-5


class Says:
    def __init__(self, said: Callable[[Batch], Tensor]) -> None:
        self.said = said

    def logits(self, batch: Batch) -> Logits:
        return Logits(self.said(batch), lambda x: x)


@pytest.mark.parametrize(("share", "score"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_score_is_1_for_the_baseline_and_0_for_zero(share: float, score: float) -> None:
    """Of a model that says what least squares does, and of one that says 0."""
    function = SparseLinear(d=4, points=10, k=2)
    task = InContextConfig(
        function=function, prompts=20, baselines=("least_squares", "nearest"), baseline_prompts=8
    )

    def says(batch: Batch) -> Tensor:
        x, y = batch.inputs["points"][:, ::2].double(), batch.targets["values"][:, ::2, 0].double()
        made = torch.zeros_like(batch.targets["values"])
        made[:, ::2, 0] = (1 - share) * BASELINES["least_squares"](
            x, y, torch.ones_like(y, dtype=torch.bool)
        ).float()
        return made

    (evaluator,) = task.build(None).evaluators("test")
    tally = evaluator.start()
    for batch in evaluator.batches(Pass(batch_size=6)):
        evaluator.add(tally, {"student": Says(says)}, batch)
    found = evaluator.finish([tally])["student"]
    assert found.metrics["score"] == pytest.approx(score, abs=1e-5)
    assert found.metrics.keys() == {metric.key for metric in evaluator.metrics}
    (shown,) = found.exhibits
    assert (
        list(shown.rows) == ["student", "least_squares", "nearest"]
        and shown.values.shape == (3, 10)
        and shown.lines
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(function=MQAR(), baselines=("nearest",)),
            "baselines has nearest, but no function here has real values",
        ),
        (
            dict(function=DecisionTree(), baselines=("tree", "tree")),
            "baselines has tree twice; write each once",
        ),
    ],
)
def test_baselines_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongValues, match=message):
        InContextConfig(**options)


def test_a_missing_extra_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from transmamba.evaluation import baselines

    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    with pytest.raises(
        WrongValues, match=r"boosted, which needs xgboost: pip install 'transmamba\[boosted\]', or leave"
    ):
        InContextConfig(function=Linear(), baselines=("boosted",))


def test_boosted_trees_are_xgboost_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a stand-in where it is not installed: each example is what it says that was shown those before
    it."""
    if "xgboost" not in sys.modules:
        import types

        from sklearn.dummy import DummyRegressor

        made = types.ModuleType("xgboost")
        made.XGBRegressor = lambda **options: DummyRegressor()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "xgboost", made)
        x, y, seen = prompts()
        wanted = of_sklearn(lambda count: DummyRegressor(), x, y, seen)
        np.testing.assert_allclose(BASELINES["boosted"](x, y, seen).numpy(), wanted)
