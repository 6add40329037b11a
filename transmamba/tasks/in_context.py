"""Functions that are learnt in context: a prompt shows examples of one, and the model says the value at the next.

A training batch travels as the numbers of its rows; `change` makes its prompts on the device. Prompts of training
and evaluation never have a row in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.load import Part
from ..config.registry import FUNCTIONS, TASKS
from ..core.batch import Batch
from ..core.points import DRAWN, PointShape
from ..core.task import Evaluator, Metric, Pass, Steps
from ..data.functions.draws import RowDraws
from ..data.functions.prompts import Drawn, Function, Prompts
from ..data.stream import in_order
from ..errors import UserError, refuse_all

# what rows and steps are drawn with, beside seed and number
_TRAIN, _TEST, _SHARED = 0, 1, 2
# prompts of an evaluation that share what a training step shares
_TOGETHER = 64
# rows of training: as many as there may be
_ROWS = 1 << 40
WHOLE = 1 << 30  # more dimensions and examples than any function has: all of them


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A number that grows while a model is trained, up to that of the function.

    start: where it begins
    step: by how much it grows
    every: after so many optimizer steps, each time
    """

    start: int
    step: int
    every: int

    def __post_init__(self) -> None:
        names = ("start", "step", "every")
        refuse_all([f"{n} is {getattr(self, n)}; write a number of at least 1" for n in names if getattr(self, n) < 1])

    def at(self, step: int) -> int:
        """Of an optimizer step."""
        return self.start + self.step * (step // self.every)


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """From easy prompts to whole ones (Garg et al., arXiv 2208.01066). Those left out are 0, or not asked: shapes
    stay, and a causal model's loss is that of shorter prompts.

    dims: dimensions of x
    points: examples
    """

    dims: Ramp | None = None
    points: Ramp | None = None


@TASKS.register("in_context")
@dataclass(frozen=True, kw_only=True)
class InContextConfig:
    """Prompts of a function, drawn anew for each row, that a model learns in context.

    function: what is learnt
    mixed: further functions; row r is of number r mod n of all n, and results are told apart
    curriculum: of training; evaluation has whole prompts
    prompts: in evaluation, of each function
    eval_seed: which they are; the same for all runs
    baselines: what else predicts the evaluation's values, where they are real: least_squares, lasso, nearest (3
        nearest neighbours), tree, boosted (XGBoost). The ICL regression score is relative to the first of them
    baseline_prompts: so many of the prompts are predicted by them
    """

    function: Annotated[Any, Part(FUNCTIONS)]
    mixed: tuple[Annotated[Any, Part(FUNCTIONS)], ...] = ()
    curriculum: Curriculum | None = None
    prompts: int = 1280
    eval_seed: int = 0
    baselines: tuple[str, ...] = ()
    baseline_prompts: int = 64

    def __post_init__(self) -> None:
        from ..evaluation.baselines import names_problems

        problems = [
            f"{name} is {getattr(self, name)}; write a number of at least 1"
            for name in ("prompts", "baseline_prompts")
            if getattr(self, name) < 1
        ]
        names = [function.name for function in self.functions]
        twice = sorted({name for name in names if names.count(name) > 1})
        problems += [f"mixed has {name} twice; write each function once" for name in twice]
        ramp = None if self.curriculum is None else self.curriculum.dims
        for function in self.functions if ramp is not None else ():
            if ramp.start < function.least_dims:
                problems.append(
                    f"curriculum.dims.start is {ramp.start}, but {function.name} needs {function.least_dims} "
                    f"dimensions; write {function.least_dims} or more"
                )
        refuse_all([*problems, *names_problems(self.baselines)])

    @property
    def functions(self) -> tuple[Function, ...]:
        return (self.function, *self.mixed)

    def build(self, preprocessing: Any) -> InContext:
        """Raises UserError for a model of other points than these."""
        return InContext(self, preprocessing)


class InContext:
    """The prompts of one run. A `core.task.Task`.

    points: of all functions together: a narrower or shorter one is filled up with zeros, of which nothing is asked
    """

    num_classes = None
    watched = final = "test"
    inputs = ("points",)
    num_train = _ROWS

    def __init__(self, config: InContextConfig, preprocessing: Any) -> None:
        self.config, self.preprocessing = config, preprocessing
        self.functions = config.functions
        shapes = [function.shape for function in self.functions]
        self.points = PointShape(
            width=max(shape.width for shape in shapes),
            outputs=max(shape.outputs for shape in shapes),
            length=max(shape.length for shape in shapes),
        )
        if isinstance(preprocessing, PointShape):
            self._fits(preprocessing, "the model")

    @property
    def row_tokens(self) -> int:
        return self.points.length

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(metric for each in self.evaluators(self.final) for metric in each.metrics)

    def check(self, model: Any, who: str) -> None:
        """Raises UserError for one that reads other points, or too few of them."""
        reads = getattr(model, "preprocessing", None)
        if not isinstance(reads, PointShape):
            raise UserError(
                f"{who} reads no points; the task in_context needs one that does, such as a run of the student sequence"
            )
        self._fits(reads, who)

    def _fits(self, model: PointShape, who: str) -> None:
        mine, theirs = (self.points.width, self.points.outputs), (model.width, model.outputs)
        if mine != theirs:
            raise UserError(
                f"{who} reads points of {model.width} numbers and says {model.outputs}; the task's have "
                f"{self.points.width} and {self.points.outputs}"
            )
        if self.points.length > model.length:
            raise UserError(
                f"{who} has {model.length} positions, but the task's prompts {self.points.length} points; write fewer, "
                "or train a model with more"
            )

    def train_batches(self, steps: Steps) -> Iterator[Batch]:
        """Numbers of rows: optimizer step s takes [s G, (s + 1) G), as `data.stream` divides them."""
        curriculum = self.config.curriculum or Curriculum()
        for step in range(steps.start_step, steps.start_step + steps.num_steps):
            dims, points = (
                WHOLE if ramp is None else ramp.at(step) for ramp in (curriculum.dims, curriculum.points)
            )
            for micro in range(steps.accumulation):
                block = (step * steps.accumulation + micro) * steps.world + steps.rank
                rows = torch.arange(steps.micro_batch) + block * steps.micro_batch
                yield self._numbered(steps.seed, _TRAIN, rows, step, dims, points)

    def _numbered(self, seed: int, split: int, rows: Tensor, step: int | Tensor, dims: int, points: int) -> Batch:
        columns = [rows if isinstance(x, Tensor) and x is rows else torch.as_tensor(x).expand(len(rows))
                   for x in (seed, split, rows, step, dims, points)]
        drawn = torch.stack(columns, dim=1)
        asked = sum(int((function.asks(self._drawn(mine, function)) & self._shown(mine, function)).sum())
                    for function, mine in self._of_functions(drawn))
        counts = {"samples": len(rows), "tokens": len(rows) * self.points.length, "answers": asked}
        return Batch({DRAWN: drawn}, {}, rows, counts)

    def change(self, batch: Batch, seed: int) -> Batch:
        """Its prompts, if it has none yet: on its device, and drawn from the numbers of its rows alone."""
        if DRAWN not in batch.inputs:
            return batch
        drawn = batch.inputs[DRAWN]
        if len(self.functions) == 1:
            return self._batch(batch, self._padded(self._made(drawn, self.functions[0])))
        made = self._nothing(len(drawn), drawn.device)
        of = drawn[:, 2] % len(self.functions)
        for number, function in enumerate(self.functions):
            rows = (of == number).nonzero()[:, 0]
            found = self._padded(self._made(drawn[rows], function))
            for whole, part in zip((made.points, made.values, made.asked), (found.points, found.values, found.asked),
                                   strict=True):
                whole[rows] = part
        return self._batch(batch, made)

    def _batch(self, batch: Batch, made: Prompts) -> Batch:
        targets = {"values": made.values, "asked": made.asked}
        if any(function.signs for function in self.functions):
            signs = torch.tensor([function.signs for function in self.functions], device=made.points.device)
            targets["signs"] = signs[batch.inputs[DRAWN][:, 2] % len(self.functions)]
        return replace(batch, inputs={"points": made.points}, targets=targets)

    def _of_functions(self, drawn: Tensor) -> Iterator[tuple[Function, Tensor]]:
        for number, function in enumerate(self.functions):
            mine = drawn[drawn[:, 2] % len(self.functions) == number]
            if len(mine):
                yield function, mine

    def _drawn(self, drawn: Tensor, function: Function) -> Drawn:
        seed, split, rows, step, dims, _ = drawn.unbind(dim=1)
        shared = RowDraws((seed, split + _SHARED, step))
        return Drawn(RowDraws((seed, split, rows)), shared, dims.clamp(max=function.dims))

    def _shown(self, drawn: Tensor, function: Function) -> Tensor:
        """(B, L) bool: tokens of the examples that a curriculum leaves."""
        places = torch.tensor(function.places(), device=drawn.device)
        return places < drawn[:, 5:]

    def _made(self, drawn: Tensor, function: Function) -> Prompts:
        prompts = function.make(self._drawn(drawn, function))
        shown = self._shown(drawn, function)[..., None]
        return replace(prompts, asked=prompts.asked & shown)

    def _padded(self, prompts: Prompts) -> Prompts:
        shape = self.points

        def filled(x: Tensor, last: int, length: int | None = shape.length) -> Tensor:
            longer = 0 if length is None else length - x.shape[1]
            return F.pad(x, (0, last - x.shape[2], 0, longer))

        return Prompts(
            filled(prompts.points, shape.width),
            filled(prompts.values, shape.outputs),
            filled(prompts.asked, shape.outputs),
            None if prompts.candidates is None else filled(prompts.candidates, shape.outputs, None),
        )

    def _nothing(self, rows: int, device: torch.device) -> Prompts:
        shape = self.points
        points = torch.zeros(rows, shape.length, shape.width, device=device)
        values = torch.zeros(rows, shape.length, shape.outputs, device=device)
        return Prompts(points, values, torch.zeros_like(values, dtype=torch.bool))

    # --- evaluation ---

    def test_batch(self, number: int, prompts: npt.NDArray[np.int64]) -> Batch:
        """Whole prompts of function `number`, by their own numbers from 0, on the CPU."""
        function, count = self.functions[number], len(self.functions)
        index = torch.from_numpy(prompts)
        batch = self._numbered(
            self.config.eval_seed, _TEST, index * count + number, index // _TOGETHER, WHOLE, WHOLE
        )
        made = self._padded(self._made(batch.inputs[DRAWN], function))
        batch = replace(self._batch(batch, made), index=index)
        if made.candidates is None:
            return batch
        return replace(batch, targets={**batch.targets, "candidates": made.candidates})

    def test_batches(self, number: int, passing: Pass) -> Iterator[Batch]:
        parts = in_order(np.arange(self.config.prompts), passing.batch_size, passing.rank, passing.world)
        return (self.test_batch(number, part) for part in parts)

    def calibration(self, samples: int, batch_size: int) -> Iterator[Batch]:
        """Prompts that are neither trained nor measured on: of a seed of their own."""
        for part in in_order(np.arange(samples), batch_size) if samples else ():
            rows = torch.from_numpy(part)
            yield self.change(self._numbered(-1, _TRAIN, rows, 0, WHOLE, WHOLE), 0)

    def evaluators(self, split: str) -> tuple[Evaluator, ...]:
        """One a function. Raises UserError for a split that there is not."""
        from ..evaluation.in_context import InContextEvaluator

        if split != self.final:
            raise UserError(f"split {split!r}: the task in_context has test alone")
        return tuple(
            InContextEvaluator(
                split,
                function,
                partial(self.test_batches, number),
                prefix=f"{function.name}_" if len(self.functions) > 1 else "",
                baselines=self.config.baselines,
                baseline_prompts=self.config.baseline_prompts,
            )
            for number, function in enumerate(self.functions)
        )

    def look_through(self) -> Iterator[str]:
        """Nothing: prompts are drawn."""
        return iter(())


