"""Prompts of rows that travel as numbers: who draws them, and where, changes nothing.

A row's numbers are (6,) int64: seed, split, row, optimizer step, dimensions and examples that a curriculum
leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.points import PointShape
from ...core.products import float32_matmul
from ...errors import refuse_all
from .draws import RowDraws
from .prompts import Drawn, Function, Prompts

# what rows and steps are drawn with, beside seed and number; a split's steps have one of their own
TRAIN, TEST, _SHARED, CALIBRATION = 0, 1, 2, 4
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
        wrong = [name for name in names if getattr(self, name) < 1]
        refuse_all([f"{name} is {getattr(self, name)}; write a number of at least 1" for name in wrong])

    def at(self, step: int) -> int:
        """Of an optimizer step."""
        return min(WHOLE, self.start + self.step * (step // self.every))


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """From easy prompts to whole ones (Garg et al., arXiv 2208.01066). Those left out are 0, or not asked:
    shapes stay, and a causal model's loss is that of shorter prompts.

    dims: dimensions of x
    points: examples
    """

    dims: Ramp | None = None
    points: Ramp | None = None

    def at(self, step: int) -> tuple[int, int]:
        """(dimensions, examples) of an optimizer step."""
        dims, points = (WHOLE if ramp is None else ramp.at(step) for ramp in (self.dims, self.points))
        return dims, points

    def problems(self, functions: Sequence[Function]) -> list[str]:
        """What of it these functions cannot have, and what would change nothing."""
        if self.dims is None and self.points is None:
            return ["curriculum names neither dims nor points; write one of them, or leave it out"]
        problems = []
        most = {"dims": max(f.dims for f in functions), "points": max(f.examples for f in functions)}
        words = {"dims": "dimensions", "points": "examples"}
        for name, ramp in (("dims", self.dims), ("points", self.points)):
            if ramp is not None and ramp.start >= most[name]:
                problems.append(
                    f"curriculum.{name}.start is {ramp.start}, but no prompt has more than {most[name]} "
                    f"{words[name]}, so that none is ever left out; write less, or leave {name} out"
                )
        start = WHOLE if self.dims is None else self.dims.start
        return problems + [
            f"curriculum.dims.start is {start}, but {function.name} needs {function.least_dims} dimensions; "
            f"write {function.least_dims} or more"
            for function in functions
            if start < function.least_dims
        ]


@dataclass(frozen=True)
class NumberedRows:
    """Row r is of function r mod n of n, whose prompt is filled up with zeros where others are wider or
    longer."""

    functions: Sequence[Function]

    @property
    def points(self) -> PointShape:
        """Of all functions together."""
        shapes = [function.shape for function in self.functions]
        return PointShape(
            width=max(shape.width for shape in shapes),
            outputs=max(shape.outputs for shape in shapes),
            length=max(shape.length for shape in shapes),
        )

    @property
    def signs(self) -> tuple[bool, ...]:
        """Of each function, whether its values are signs."""
        return tuple(function.signs for function in self.functions)

    def asked(self, numbers: Tensor) -> int:
        """At how many tokens of these rows (B, 6), on the CPU, something is asked."""
        _, _, rows, _, _, shown = numbers.numpy().T
        found, of = 0, rows % len(self.functions)
        for number, function in enumerate(self.functions):
            mine = of == number
            if not function.drawn_asked:
                found += int(_asked_by(function)[np.minimum(shown[mine], function.examples)].sum())
            elif mine.any():
                share = numbers[torch.from_numpy(mine)]
                found += int((function.asks(_drawn(share, function)) & _shown(share, function)).sum())
        return found

    def make(self, numbers: Tensor) -> Prompts:
        """Prompts of these rows (B, 6), on their device; candidates where there is one function. Of several
        functions the rows must follow one another, as those of a micro-batch do: then it is known how many
        are of each, whatever the numbers are. Their products are of float32, whatever a run's are: labels of
        fewer bits would be another task."""
        with float32_matmul("highest"):
            return self._make(numbers)

    def _make(self, numbers: Tensor) -> Prompts:
        if len(self.functions) == 1:
            return self._padded(_made(numbers, self.functions[0]))
        shape, device, turns = self.points, numbers.device, -(-len(numbers) // len(self.functions))
        # whole turns of the functions; what lies behind the last row is made of it, and cut off
        points = torch.zeros(turns * len(self.functions), shape.length, shape.width, device=device)
        values = torch.zeros(len(points), shape.length, shape.outputs, device=device)
        whole = Prompts(points, values, torch.zeros_like(values, dtype=torch.bool))
        starts = torch.arange(turns, device=device) * len(self.functions)
        for number, function in enumerate(self.functions):
            rows = starts + (number - numbers[0, 2]) % len(self.functions)
            made = self._padded(_made(numbers[rows.clamp(max=len(numbers) - 1)], function))
            whole.points[rows], whole.values[rows], whole.asked[rows] = made.points, made.values, made.asked
        count = len(numbers)
        return Prompts(whole.points[:count], whole.values[:count], whole.asked[:count])

    def are_signs(self, rows: Tensor) -> Tensor | None:
        """(B,) bool of rows (B,): whose values are signs; None where no function's are."""
        of = rows % len(self.functions)
        found = [of == number for number, signs in enumerate(self.signs) if signs]
        return torch.stack(found).any(dim=0) if found else None

    def make_alone(self, number: int, numbers: Tensor) -> Prompts:
        """Prompts of rows that are all of function `number`."""
        with float32_matmul("highest"):
            return self._padded(_made(numbers, self.functions[number]))

    def _padded(self, prompts: Prompts) -> Prompts:
        shape = self.points

        def filled(x: Tensor, last: int, length: int) -> Tensor:
            missing = last - x.shape[2], length - x.shape[1]
            return F.pad(x, (0, missing[0], 0, missing[1])) if any(missing) else x

        among = prompts.candidates
        return Prompts(
            filled(prompts.points, shape.width, shape.length),
            filled(prompts.values, shape.outputs, shape.length),
            filled(prompts.asked, shape.outputs, shape.length),
            None if among is None else filled(among, shape.outputs, among.shape[1]),
        )


def numbered(
    seed: int, split: int, rows: Tensor, step: int | Tensor, dims: int = WHOLE, points: int = WHOLE
) -> Tensor:
    """(B, 6) of rows (B,), and of their step or steps."""
    numbers = torch.empty(len(rows), 6, dtype=torch.int64)
    for column, value in enumerate((seed, split, rows, step, dims, points)):
        numbers[:, column] = value
    return numbers


def _drawn(numbers: Tensor, function: Function) -> Drawn:
    seed, split, rows, step, dims, _ = numbers.unbind(dim=1)
    shared = RowDraws((seed, split + _SHARED, step))
    return Drawn(RowDraws((seed, split, rows)), shared, dims.clamp(max=function.dims))


def _shown(numbers: Tensor, function: Function) -> Tensor:
    """(B, L) bool: tokens of the examples that a curriculum leaves."""
    tokens = torch.arange(function.shape.length, device=numbers.device)
    return function.place_of(tokens) < numbers[:, 5:]


@cache
def _asked_by(function: Function) -> npt.NDArray[np.int64]:
    """(examples + 1,) at how many tokens of a prompt's first so many examples something is asked, where draws
    do not decide it."""
    row = numbered(0, TRAIN, torch.zeros(1, dtype=torch.int64), 0)
    asked = function.asks(_drawn(row, function))[0].numpy()
    places = np.array(function.places())[asked]
    return np.cumsum([0, *np.bincount(places, minlength=function.examples)])


def _made(numbers: Tensor, function: Function) -> Prompts:
    prompts = function.make(_drawn(numbers, function))
    return replace(prompts, asked=prompts.asked & _shown(numbers, function)[..., None])
