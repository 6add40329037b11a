"""Functions that are learnt in context: a prompt shows examples of one, and the model says the next value.

A training batch travels as the numbers of its rows; `change` makes its prompts on the device. Training and
evaluation never have a row in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config.load import Part
from ..config.registry import FUNCTIONS, TASKS
from ..core.batch import Batch
from ..core.points import PointShape
from ..core.task import Evaluator, Metric, Pass, Steps
from ..data.functions.numbered import CALIBRATION, TEST, TRAIN, Curriculum, NumberedRows, numbered
from ..data.functions.prompts import Function, Prompts
from ..data.hashing import seed_problems
from ..data.stream import in_order
from ..errors import UserError, refuse_all

# of a batch, what its prompts are made of
_NUMBERS = "numbers"
# prompts of an evaluation that share what the rows of a training step share
_TOGETHER = 64
# rows to train on: nobody comes to their end
_ROWS = 1 << 40


@TASKS.register("in_context")
@dataclass(frozen=True, kw_only=True)
class InContextConfig:
    """Prompts of a function, drawn anew for each row, that a model learns in context.

    function: what is learnt
    mixed: further functions; row r is of number r mod n of all n. Their results begin with their names, and
        `function` has its own as if it were alone
    curriculum: of training; evaluation has whole prompts
    prompts: in evaluation, of each function
    eval_seed: which they are; the same for all runs
    baselines: what else predicts the evaluation's values, where they are real: least_squares, lasso, nearest
        (3 nearest neighbours), tree, boosted (XGBoost). The ICL regression score is relative to the first of
        them
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
        from ..evaluation.baselines import baseline_problems

        sizes = [name for name in ("prompts", "baseline_prompts") if getattr(self, name) < 1]
        problems = [f"{name} is {getattr(self, name)}; write a number of at least 1" for name in sizes]
        problems += seed_problems("eval_seed", self.eval_seed)
        names = [function.name for function in self.functions]
        twice = sorted({name for name in names if names.count(name) > 1})
        problems += [f"mixed has {name} twice; write each function once" for name in twice]
        if self.curriculum is not None:
            problems += self.curriculum.problems(self.functions)
        refuse_all([*problems, *baseline_problems(self.baselines, self.functions)])

    @property
    def functions(self) -> tuple[Function, ...]:
        return (self.function, *self.mixed)

    def build(self, preprocessing: Any) -> InContext:
        """Raises UserError for a model of other points than these."""
        return InContext(self, preprocessing)


class InContext:
    """The prompts of one run. A `core.task.Task`.

    points: what a model of them reads, and says of it
    """

    num_classes = None
    watched = final = "test"
    inputs = ("points",)
    targets = ("values", "asked")
    num_train = _ROWS
    recordable = True

    def __init__(self, config: InContextConfig, preprocessing: Any) -> None:
        self.config, self.preprocessing = config, preprocessing
        self.rows = NumberedRows(config.functions)
        self.points = self.rows.points
        self._baselines: dict[int, Mapping[str, npt.NDArray[np.float64]]] = {}
        if isinstance(preprocessing, PointShape):
            self._check_fits(preprocessing, "the model")
        for number, function in enumerate(self.rows.functions):
            if not self.rows.asked(self._test_numbers(number, np.arange(config.prompts))):
                raise UserError(
                    f"nothing is asked in {config.prompts} prompts of {function.name}, each of "
                    f"{function.examples} examples; write more of either, or a smaller share of outliers"
                )

    @property
    def row_tokens(self) -> int:
        return self.points.length

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(metric for each in self.evaluators(self.final) for metric in each.metrics)

    def check(self, model: Any, who: str) -> None:
        """Raises UserError for one that reads no points, others, or too few of them."""
        reads = getattr(model, "preprocessing", None) or getattr(model, "points", None)
        if not isinstance(reads, PointShape):
            raise UserError(
                f"{who} reads no points, as the task in_context needs it; write a run of the student sequence"
            )
        self._check_fits(reads, who)

    def _check_fits(self, model: PointShape, who: str) -> None:
        mine, theirs = (self.points.width, self.points.outputs), (model.width, model.outputs)
        if mine != theirs:
            raise UserError(
                f"{who} reads points of {model.width} numbers and says {model.outputs}; the task's have "
                f"{self.points.width} and {self.points.outputs}"
            )
        if 0 < model.positions < self.points.length:
            raise UserError(
                f"{who} has {model.positions} positions, but the task's prompts {self.points.length} points; "
                "write fewer, or train a model with more"
            )

    def train_batches(self, steps: Steps) -> Iterator[Batch]:
        """Optimizer step s takes rows [s G, (s + 1) G), divided as `data.stream` does it."""
        curriculum = self.config.curriculum or Curriculum()
        for step in range(steps.start_step, steps.start_step + steps.num_steps):
            for micro in range(steps.accumulation):
                block = (step * steps.accumulation + micro) * steps.world + steps.rank
                rows = torch.arange(steps.micro_batch) + block * steps.micro_batch
                numbers = numbered(steps.seed, TRAIN, rows, step, *curriculum.at(step))
                yield self._travelling(numbers, rows)

    def _travelling(self, numbers: Tensor, index: Tensor) -> Batch:
        counts = {"samples": len(index), "tokens": len(index) * self.points.length}
        return Batch({_NUMBERS: numbers}, {}, index, {**counts, "answers": self.rows.asked(numbers)})

    def change(self, batch: Batch, seed: int) -> Batch:
        """Its prompts, if it has none yet: on its device, out of its rows' numbers and nothing else."""
        numbers = batch.inputs.get(_NUMBERS)
        return batch if numbers is None else self._with(batch, self.rows.make(numbers))

    def _with(self, batch: Batch, made: Prompts) -> Batch:
        targets = {"values": made.values, "asked": made.asked}
        signs = self.rows.are_signs(batch.inputs[_NUMBERS][:, 2])
        if signs is not None:
            targets["signs"] = signs
        return replace(batch, inputs={"points": made.points}, targets=targets)

    # --- evaluation ---

    def test_batch(self, number: int, prompts: npt.NDArray[np.int64]) -> Batch:
        """Whole prompts of function `number`, by their own numbers from 0, on the CPU."""
        index, numbers = torch.from_numpy(prompts), self._test_numbers(number, prompts)
        made = self.rows.make_alone(number, numbers)
        batch = self._with(self._travelling(numbers, index), made)
        if made.candidates is None:
            return batch
        return replace(batch, targets={**batch.targets, "candidates": made.candidates})

    def _test_numbers(self, number: int, prompts: npt.NDArray[np.int64]) -> Tensor:
        index = torch.from_numpy(prompts)
        rows = index * len(self.rows.functions) + number
        return numbered(self.config.eval_seed, TEST, rows, index // _TOGETHER)

    def test_batches(self, number: int, passing: Pass) -> Iterator[Batch]:
        """This process's, of function `number`."""
        every = np.arange(self.config.prompts)
        parts = in_order(every, passing.batch_size, passing.rank, passing.world)
        return (self.test_batch(number, part) for part in parts)

    def calibration(self, samples: int, batch_size: int) -> Iterator[Batch]:
        """Prompts that are neither trained nor measured on."""
        for part in in_order(np.arange(samples), batch_size) if samples else ():
            index = torch.from_numpy(part)
            yield self.change(self._travelling(numbered(0, CALIBRATION, index, 0), index), 0)

    def evaluators(self, split: str) -> tuple[Evaluator, ...]:
        """One a function. Raises UserError for a split that there is not."""
        from ..evaluation.in_context import InContextEvaluator

        if split != self.final:
            raise UserError(f"split {split!r}: the task in_context has {self.final} alone")
        return tuple(
            InContextEvaluator(
                split,
                function,
                partial(self.test_batches, number),
                prefix=f"{function.name}_" if number else "",
                title=f"{function.name} " if len(self.rows.functions) > 1 else "",
                baselines=self.config.baselines,
                beside=partial(self._beside, number),
            )
            for number, function in enumerate(self.rows.functions)
        )

    def _beside(self, number: int) -> Mapping[str, npt.NDArray[np.float64]]:
        """What the baselines miss on the first prompts of a function, found once."""
        from ..evaluation.baselines import baseline_errors

        if number not in self._baselines:
            prompts = np.arange(min(self.config.prompts, self.config.baseline_prompts))
            batch, function = self.test_batch(number, prompts), self.rows.functions[number]
            self._baselines[number] = baseline_errors(self.config.baselines, function, batch)
        return self._baselines[number]

    def look_through(self) -> Iterator[str]:
        """Nothing: prompts are drawn."""
        return iter(())
