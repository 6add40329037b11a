"""The task `in_context`: prompts that follow from their rows' numbers, curricula, several functions at once,
and what is measured."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
import torch
from torch import Tensor

from transmamba.config import load as configs
from transmamba.config import registry
from transmamba.core.batch import Batch
from transmamba.core.output import Logits
from transmamba.core.points import PointShape, per_token
from transmamba.core.task import Pass, Steps, Task
from transmamba.core.tower import StudentSpec
from transmamba.data.functions.chain import ChainOfThought
from transmamba.data.functions.mqar import MQAR
from transmamba.data.functions.numbered import Curriculum, Ramp
from transmamba.data.functions.outliers import ManyOutlier
from transmamba.data.functions.parity import SparseParity
from transmamba.data.functions.prompts import Function
from transmamba.data.functions.regression import Linear
from transmamba.errors import ConfigError, UserError
from transmamba.runs.build import assemble, make_accelerator
from transmamba.runs.recipe import Recipe
from transmamba.runs.run import run
from transmamba.students.sequence.names import Sequence
from transmamba.tasks.in_context import InContext, InContextConfig

SMALL = Linear(d=3, points=4)


def task_of(function: Function = SMALL, *mixed: Function, **options: Any) -> InContext:
    return InContextConfig(function=function, mixed=mixed, **{"prompts": 12, **options}).build(None)


def trained(task: InContext, **steps: Any) -> list[Batch]:
    """As the trainer makes them, whose own seed is not the data's."""
    return [task.change(batch, 99) for batch in task.train_batches(Steps(**{"seed": 3, **steps}))]


def rows(batches: list[Batch]) -> dict[int, list[Tensor]]:
    """Each row's tensors, by its number."""
    found = {}
    for batch in batches:
        for place, row in enumerate(batch.index.tolist()):
            assert row not in found
            found[row] = [batch.inputs["points"][place], *(x[place] for x in batch.targets.values())]
    return found


def same(one: dict[int, list[Tensor]], other: dict[int, list[Tensor]]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(a, b) for row in one for a, b in zip(one[row], other[row], strict=True)
    )


KINDS: dict[str, tuple[Function, ...]] = {
    "one": (SMALL,),
    "outliers": (ManyOutlier(d=3, points=6, share=0.5),),
    "released": (SparseParity(d=4, points=5, as_released=True),),
    "mixed": (SMALL, SparseParity(d=4, points=5), MQAR(d=4, pairs=3, queries=2)),
}


@pytest.mark.parametrize("kind", KINDS)
class TestStream:
    def test_a_step_is_the_same_however_it_is_divided(self, kind: str) -> None:
        task = task_of(*KINDS[kind])
        whole = rows(trained(task, micro_batch=8, num_steps=3))
        assert same(whole, rows(trained(task, micro_batch=1, accumulation=8, num_steps=3)))
        shared = [
            trained(task, micro_batch=2, accumulation=2, num_steps=3, rank=r, world=2) for r in range(2)
        ]
        assert same(whole, rows([*itertools.chain(*shared)]))

    def test_a_resumed_stream_goes_on(self, kind: str) -> None:
        task = task_of(*KINDS[kind])
        whole = trained(task, micro_batch=4, num_steps=6)
        assert same(rows(whole[2:]), rows(trained(task, micro_batch=4, start_step=2, num_steps=4)))

    def test_the_seed_of_the_run_alone_changes_it(self, kind: str) -> None:
        task = task_of(*KINDS[kind])
        (batch,) = task.train_batches(Steps(micro_batch=4, seed=3, num_steps=1))
        one, again = task.change(batch, 0), task.change(batch, 1)
        assert same(rows([one]), rows([again])) and task.change(one, 0) is one
        (other,) = trained(task, micro_batch=4, seed=4, num_steps=1)
        assert not torch.equal(one.inputs["points"], other.inputs["points"])

    def test_counts_are_of_what_is_asked(self, kind: str) -> None:
        ramp = Curriculum(dims=Ramp(start=2, step=1, every=2), points=Ramp(start=1, step=1, every=1))
        for batch in trained(task_of(*KINDS[kind], curriculum=ramp), micro_batch=6, num_steps=4):
            assert batch.counts["answers"] == int(batch.targets["asked"].any(dim=-1).sum()) > 0
            assert (
                batch.counts["samples"] == 6
                and batch.counts["tokens"] == batch.inputs["points"][..., 0].numel()
            )

    def test_no_prompt_of_evaluation_is_trained_on(self, kind: str) -> None:
        task = task_of(*KINDS[kind], eval_seed=3)
        seen = {
            tuple(x[0].flatten().tolist()) for x in rows(trained(task, micro_batch=24, num_steps=2)).values()
        }
        for number in range(len(task.rows.functions)):
            for x in task.test_batch(number, np.arange(12)).inputs["points"]:
                assert tuple(x.flatten().tolist()) not in seen
        for seed in (-1, 0, 1):  # whatever the run's, and that which says any elsewhere
            trained_on = rows(trained(task, micro_batch=6, num_steps=1, seed=seed))
            (calibration,) = task.calibration(6, 8)
            assert not same(trained_on, rows([calibration]))
        (calibration,) = task.calibration(6, 8)
        assert len(calibration) == 6 and calibration.inputs["points"].shape[1:] == (
            task.points.length,
            task.points.width,
        )


def test_as_released_a_step_shares_what_its_rows_do_not_share_otherwise() -> None:
    task = task_of(*KINDS["released"])
    sets = []
    for step in range(6):
        (batch,) = trained(task, micro_batch=8, start_step=step, num_steps=1)
        x, y = batch.inputs["points"][:, ::2], batch.targets["values"][:, ::2, 0]
        fits = [
            {(i, j) for i in range(4) for j in range(i) if torch.equal(a[:, i] * a[:, j], b)}
            for a, b in zip(x, y, strict=True)
        ]
        sets.append(frozenset(set.intersection(*fits)))
        assert sets[-1], "one pair of dimensions fits all rows"
    assert len(set(sets)) > 1, "and another one the next step"


class TestCurriculum:
    RAMP = Curriculum(dims=Ramp(start=1, step=1, every=2), points=Ramp(start=2, step=1, every=3))

    def test_it_grows_with_the_optimizer_s_steps(self) -> None:
        for step, batch in enumerate(trained(task_of(curriculum=self.RAMP), micro_batch=2, num_steps=9)):
            x, asked = batch.inputs["points"][:, ::2], batch.targets["asked"][..., 0]
            assert int((x != 0).any(dim=(0, 1)).sum()) == min(3, 1 + step // 2)
            assert asked.sum(dim=1).tolist() == [min(4, 2 + step // 3)] * 2

    def test_its_loss_is_that_of_shorter_prompts(self) -> None:
        """Which nothing behind them reaches, so that shapes may stay."""
        task = task_of(curriculum=replace(self.RAMP, dims=None))
        (batch,) = trained(task, micro_batch=3, num_steps=1)
        torch.manual_seed(0)
        model = Sequence(width=16, heads=2, layers=1).build(StudentSpec(points=task.points))
        whole = per_token(model(batch.inputs["points"]), batch.targets).sum()
        shorter = {name: x[:, :4] for name, x in batch.targets.items()}
        torch.testing.assert_close(per_token(model(batch.inputs["points"][:, :4]), shorter).sum(), whole)

    def test_a_step_beyond_all_numbers_is_the_end(self) -> None:
        ramp = Curriculum(dims=Ramp(start=1, step=2**70, every=1))
        (batch,) = trained(task_of(curriculum=ramp), micro_batch=2, start_step=1, num_steps=1)
        (whole,) = trained(task_of(), micro_batch=2, start_step=1, num_steps=1)
        assert torch.equal(batch.inputs["points"], whole.inputs["points"])

    @pytest.mark.parametrize("name", sorted(registry.FUNCTIONS))
    def test_dead_dimensions_are_0_in_every_function(self, name: str) -> None:
        function = registry.FUNCTIONS[name](d=6)
        ramp = Curriculum(dims=Ramp(start=function.least_dims, step=1, every=9))
        (batch,) = trained(task_of(function, curriculum=ramp), micro_batch=4, num_steps=1)
        alive = (batch.inputs["points"][..., : function.d] != 0).any(dim=1).any(dim=0)
        assert alive.tolist() == [k < function.least_dims for k in range(6)]

    def test_evaluation_has_whole_prompts(self) -> None:
        one, other = (task_of(curriculum=each).test_batch(0, np.arange(5)) for each in (None, self.RAMP))
        assert torch.equal(one.inputs["points"], other.inputs["points"])
        assert one.targets["asked"].sum() == 5 * 4


class TestMixed:
    def test_rows_go_to_the_functions_in_turn_and_are_filled_up(self) -> None:
        functions = KINDS["mixed"]
        task = task_of(*functions)
        assert task.points == PointShape(width=4, outputs=4, length=10)
        found = rows(trained(task, micro_batch=9, num_steps=2))
        assert len(found) == 18
        for number, function in enumerate(functions):
            alone, shape = rows(trained(task_of(function), micro_batch=9, num_steps=2)), function.shape
            for row in range(number, 18, 3):
                points, values, asked, signs = found[row]
                assert bool(signs) == function.signs
                for whole, mine, last in (
                    (points, alone[row][0], shape.width),
                    (values, alone[row][1], shape.outputs),
                ):
                    assert torch.equal(whole[: shape.length, :last], mine)
                    assert not whole[shape.length :].any() and not whole[:, last:].any()
                assert int(asked.sum()) == int(alone[row][2].sum())

    def test_results_are_told_apart(self) -> None:
        keys = [metric.key for metric in task_of(*KINDS["mixed"]).metrics]
        assert {"error", "sparse_parity_accuracy", "mqar_accuracy", "mqar_last_error"} <= set(keys)
        assert len(set(keys)) == len(keys)

    def test_a_sign_has_the_logistic_loss_and_a_value_the_squared_one(self) -> None:
        (batch,) = trained(task_of(SMALL, SparseParity(d=3, points=4)), micro_batch=4, num_steps=1)
        made = torch.randn(4, 8, 1)
        got = per_token(made, batch.targets)
        for row, token in itertools.product(range(4), range(8)):
            said, right = float(made[row, token]), float(batch.targets["values"][row, token])
            wanted = (said - right) ** 2 if row % 2 == 0 else float(np.log1p(np.exp(-said * right)))
            assert float(got[row, token]) == pytest.approx(wanted if token % 2 == 0 else 0.0, rel=1e-5)


# --- what is measured ---


class Says:
    """A model that says what it is told."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def logits(self, batch: Batch) -> Logits:
        return Logits(self.said(batch), lambda x: x)


def noisy(batch: Batch) -> Tensor:
    """The values, and something of each prompt's own."""
    draw = [
        torch.randn(batch.targets["values"].shape[1:], generator=torch.Generator().manual_seed(int(i)))
        for i in batch.index
    ]
    return batch.targets["values"] + torch.stack(draw)


def measured(task: InContext, said: Any, batch_size: int = 5, world: int = 1) -> Any:
    (evaluator,) = task.evaluators("test")
    tallies = []
    for rank in range(world):
        tally = evaluator.start()
        for batch in evaluator.batches(Pass(batch_size=batch_size, rank=rank, world=world)):
            evaluator.add(tally, {"student": Says(said)}, batch)
        tallies.append(tally)
    return evaluator.finish(tallies)["student"]


FUNCTIONS = {
    "linear": Linear(d=3, points=20),
    "many_outlier": ManyOutlier(d=3, points=20, share=0.5),
    "sparse_parity": SparseParity(d=3, points=20),
    "mqar": MQAR(d=4, pairs=5, queries=4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_metrics_are_those_of_a_loop(name: str) -> None:
    function = FUNCTIONS[name]
    task = task_of(function)
    found = measured(task, noisy)
    batch = task.test_batch(0, np.arange(12))
    made, values, places = noisy(batch), batch.targets["values"], function.places()
    scale = {"linear": 3.0, "many_outlier": 3.0}.get(name, 1.0)
    errors: list[list[float]] = [[] for _ in range(function.examples)]
    right: list[list[float]] = [[] for _ in range(function.examples)]
    for row in range(12):
        for token in range(task.points.length):
            if not batch.targets["asked"][row, token].any():
                continue
            said, is_ = made[row, token], values[row, token]
            errors[places[token]].append(float(((said - is_) ** 2).mean()) / scale)
            if name == "mqar":
                among = batch.targets["candidates"][row]
                nearest = min(range(5), key=lambda k: float((said - among[k]).norm()))
                right[places[token]].append(100.0 * torch.equal(among[nearest], is_))
            else:
                right[places[token]].append(100.0 * (float(said) * float(is_) > 0))
    last = max(1, function.examples // 10)
    for what, each in (("error", errors), ("accuracy", right)):
        if what == "accuracy" and not (function.signs or function.recalled):
            assert "accuracy" not in found.metrics
            continue
        assert found.metrics[what] == pytest.approx(np.mean([*itertools.chain(*each)]), rel=1e-5)
        assert found.metrics[f"last_{what}"] == pytest.approx(
            np.mean([*itertools.chain(*each[-last:])]), rel=1e-5
        )
        (line,) = [m.values[0] for m in found.exhibits if f": {what} by example" in m.title]
        assert line == pytest.approx([np.mean(x) if x else 0 for x in each], rel=1e-5)
        assert found.items[what].mean() == pytest.approx(found.metrics[what])
    missed = {
        "mqar": 100 - found.metrics.get("accuracy", 0),
        "sparse_parity": 100 - found.metrics.get("last_accuracy", 0),
    }
    assert found.metrics["missed"] == pytest.approx(missed.get(name, 100 * found.metrics["last_error"]))
    assert (
        found.items["missed"].mean() == pytest.approx(found.metrics["missed"])
        and len(found.items["missed"]) == 12
    )


@pytest.mark.parametrize("world", [1, 2])
def test_an_evaluation_is_the_same_however_it_is_divided(world: int) -> None:
    task = task_of(FUNCTIONS["many_outlier"], prompts=11)
    one, other = measured(task, noisy, batch_size=11), measured(task, noisy, batch_size=3, world=world)
    assert one.metrics == pytest.approx(other.metrics) and list(one.index) == list(other.index) == [
        *range(11)
    ]


def test_a_perfect_model_recalls_all_and_one_that_says_nothing_by_chance() -> None:
    task = task_of(MQAR(d=8, pairs=8, queries=4), prompts=300)
    perfect = measured(task, lambda batch: batch.targets["values"])
    assert perfect.metrics["accuracy"] == 100 and perfect.metrics["error"] == 0
    chance = measured(task, lambda batch: torch.randn(batch.targets["values"].shape))
    assert 8 < chance.metrics["accuracy"] < 17


REAL = [
    name
    for name, function in ((each, registry.FUNCTIONS[each]) for each in sorted(registry.FUNCTIONS))
    if not (function.signs or function.recalled)
]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("mixed", [False, True])
def test_who_says_0_misses_all_of_a_function_that_is_not_counted(name: str, mixed: bool) -> None:
    """Within sampling; beside a function of wider values, too."""
    others = (MQAR(d=12, pairs=3, queries=2),) if mixed else ()
    task = task_of(registry.FUNCTIONS[name](), *others, prompts=512)
    evaluator = task.evaluators("test")[0]
    tally = evaluator.start()
    for batch in evaluator.batches(Pass(batch_size=128)):
        zero: Any = Silent()
        evaluator.add(tally, {"zero": zero}, batch)
    found = evaluator.finish([tally])["zero"].metrics
    assert found["error"] == pytest.approx(1, rel=0.15) and found["missed"] == pytest.approx(100, rel=0.2)


class Silent:
    """Says 0."""

    def logits(self, batch: Batch) -> Logits:
        return Logits(torch.zeros_like(batch.targets["values"]), lambda x: x)


def test_a_chain_of_thought_is_rolled_out_with_the_model_s_own_steps() -> None:
    """Of a model that says each step too large by a half, and at s twice the sum of what it reads there."""
    function = ChainOfThought(d=3, points=4, hidden=2)
    task = task_of(function)

    def says(batch: Batch) -> Tensor:
        made = torch.zeros_like(batch.targets["values"])
        made[:, ::3] = 1.5 * batch.targets["values"][:, ::3]
        made[:, 1::3, 2] = 2 * batch.inputs["points"][:, 1::3, 3:5].sum(dim=-1)
        return made

    batch, found = task.test_batch(0, np.arange(12)), measured(task, says)
    s, y = batch.inputs["points"][:, -2, 3:5], batch.targets["values"][:, -2, 2]
    wanted = (2 * (1.5 * s).sum(dim=-1) - y).square().mean()
    moment = 3  # of y: d
    assert found.metrics["rolled_error"] == pytest.approx(float(wanted) / moment, rel=1e-5)
    assert found.metrics.keys() == {metric.key for metric in task.metrics}


def test_it_is_a_task_with_one_split() -> None:
    task = task_of()
    assert isinstance(task, Task) and task.row_tokens == 8
    with pytest.raises(UserError, match="the task in_context has test alone"):
        task.evaluators("validation")


# --- bad input ---


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"function": {"name": "sparse_parity", "d": 4, "k": 9}}, "k: 9, above d, 4; write 4 at most"),
        ({"function": "linear", "mixed": ["linear"]}, "mixed has linear twice; write each function once"),
        ({"function": "linear", "prompts": 0}, "prompts: 0; write a number of at least 1"),
        ({"function": "linear", "baselines": ["ridge"]}, "ridge; write some of least_squares"),
        (
            {"function": "sparse_linear", "curriculum": {"dims": {"start": 2, "step": 1, "every": 5}}},
            "curriculum.dims.start is 2, but sparse_linear needs 3 dimensions",
        ),
        (
            {"function": "linear", "curriculum": {"points": {"start": 0, "step": 1, "every": 5}}},
            "start: 0; write",
        ),
        (
            {"function": "linear", "curriculum": {"points": {"start": 5, "step": 0, "every": 5}}},
            "step: 0; write",
        ),
        (
            {"function": "linear", "curriculum": {"dims": {"start": 5, "step": 1, "every": 0}}},
            "every: 0; write",
        ),
        ({"function": "linear", "curriculum": {}}, "curriculum names neither dims nor points"),
        (
            {"function": "linear", "curriculum": {"dims": {"start": 20, "step": 1, "every": 5}}},
            "curriculum.dims.start is 20, but no prompt has more than 20 dimensions",
        ),
        (
            {"function": "mqar", "curriculum": {"points": {"start": 2**70, "step": 1, "every": 5}}},
            "but no prompt has more than 16 examples, so that none is ever left out; write less",
        ),
        (
            {"function": "mqar", "curriculum": {"dims": {"start": 1, "step": 1, "every": 5}}},
            "curriculum.dims.start is 1, but mqar needs 2 dimensions",
        ),
        (
            {"function": "linear", "eval_seed": 2**70},
            "eval_seed: .*; write a whole number from 0 to 4294967295",
        ),
        ({"function": "linear", "eval_seed": -1}, "eval_seed: -1; write a whole number from 0"),
        ({"function": "lineer"}, "unknown function 'lineer'; did you mean 'linear'"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(task: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configs.parse(InContextConfig, task, "task")


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        (
            PointShape(width=3, outputs=1, length=7, positions=7),
            "has 7 positions, but the task's prompts 8 points; write fewer",
        ),
        (
            PointShape(width=4, outputs=1, length=8),
            "reads points of 4 numbers and says 1; the task's have 3 and 1",
        ),
    ],
)
def test_a_model_of_other_points_is_refused(reads: PointShape, message: str) -> None:
    with pytest.raises(UserError, match=message):
        InContextConfig(function=SMALL).build(reads)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (dict(function=dict(name="mqar", d=4, pairs=3, queries=2)), "says 1; the task's have 4 and 4"),
        (dict(function=dict(name="linear", d=5, points=4)), "reads points of 4 numbers .* have 5 and 1"),
        (dict(function=dict(name="linear", d=4, points=5)), "8 positions, but the task's prompts 10 points"),
        (dict(curriculum=dict(points=dict(start=1, step=1, every=1))), None),
    ],
)
def test_a_stage_of_other_points_is_refused(
    stage: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    """Predictions of one number would have been compared with each of several."""
    values = dict(
        output_dir=str(tmp_path / "run"),
        task=dict(name="in_context", prompts=4, function=dict(name="linear", d=4, points=4)),
        student=dict(name="sequence", architecture="transformer", layers=1, width=16, heads=2),
        stages=[dict(losses=["prediction"], steps=1), dict(losses=["prediction"], steps=1, task=stage)],
        trainer=dict(global_batch=4),
    )
    recipe = configs.parse(Recipe, values, "recipe")
    refused = (
        nullcontext() if message is None else pytest.raises(UserError, match=f"stages.1.task: .*{message}")
    )
    with refused:
        assemble(recipe, make_accelerator(recipe), quiet=True)


def test_predictions_of_another_shape_are_not_spread() -> None:
    (batch,) = trained(task_of(MQAR(d=4, pairs=3, queries=2)), micro_batch=2, num_steps=1)
    with pytest.raises(UserError, match=r"says values \(2, 8, 1\), but \(2, 8, 4\) are asked"):
        per_token(torch.zeros(2, 8, 1), batch.targets)


def test_prompts_that_ask_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="nothing is asked in 4 prompts of many_outlier, each of 2 examples"):
        task_of(ManyOutlier(d=3, points=2, share=0.9999), prompts=4)


def test_a_model_without_positions_reads_any_length() -> None:
    short = StudentSpec(points=PointShape(width=3, outputs=1, length=4))
    for architecture, refused in (("mamba", False), ("transformer", True)):
        model = Sequence(architecture=architecture, width=8, heads=2, layers=1).build(short)
        with pytest.raises(UserError, match="student has 4 positions") if refused else nullcontext():
            task_of().check(model, "student")


def test_a_teacher_of_pictures_is_refused() -> None:
    with pytest.raises(UserError, match=r"teacher reads no points.*; write a run of the student sequence"):
        task_of().check(harness.tiny_teacher(), "teacher")


# --- a run ---


def recipe_of(folder: Path, dropout: float = 0.0, **trainer: Any) -> Recipe:
    values: dict[str, Any] = dict(
        output_dir=str(folder),
        task=dict(
            name="in_context",
            function=dict(name="many_outlier", d=3, points=5, share=0.4),
            mixed=[dict(name="sparse_parity", d=4, points=4)],
            curriculum=dict(points=dict(start=3, step=1, every=3)),
            prompts=9,
        ),
        student=dict(
            name="sequence", pattern="M(AS)", width=8, heads=2, dropout=dropout, mixer="mamba2", conv=2
        ),
        stages=[dict(losses=["prediction"], steps=6, lr=3e-3)],
        trainer=dict(dict(global_batch=8, log_every=1, save_every=2, eval_every=3), **trainer),
        seed=4,
    )
    return configs.parse(Recipe, values, "recipe")


@pytest.mark.usefixtures("report_of_a_run")
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Event

    from transmamba.training.interrupted import Interrupted
    from transmamba.training.step import Stepper

    whole = run(recipe_of(tmp_path / "whole", 0.2), quiet=True)
    monkeypatch.setattr("transmamba.runs.run.write_report", lambda folder: None)
    assert {"error", "sparse_parity_accuracy"} <= whole["student"].keys()
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "many_outlier: error by example" in page and "sparse_parity: accuracy by example" in page
    real, asked = Stepper.step, Event()

    def step(self: Stepper, micro: Any, number: int, *_: Any) -> Any:
        if number == 3:
            asked.set()
        return real(self, micro, number, asked.is_set)

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(Interrupted):
        run(recipe_of(tmp_path / "cut", 0.2), quiet=True)
    monkeypatch.setattr(Stepper, "step", real)
    assert harness.without_timing(
        run(recipe_of(tmp_path / "cut", 0.2), quiet=True)
    ) == harness.without_timing(whole)
    one, other = (harness.without_timing(harness.metrics_rows(tmp_path / name)) for name in ("whole", "cut"))
    assert one == other


def test_a_run_in_micro_batches_is_the_same(tmp_path: Path) -> None:
    run(recipe_of(tmp_path / "whole"), quiet=True)
    run(recipe_of(tmp_path / "parts", micro_batch=2), quiet=True)
    one, other = (
        [row["loss"] for row in harness.metrics_rows(tmp_path / n) if "loss" in row]
        for n in ("whole", "parts")
    )
    assert len(one) == 6 and one == pytest.approx(other, rel=1e-4)
