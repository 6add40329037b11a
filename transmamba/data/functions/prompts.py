"""What all functions share: prompts, and points x with their values y as tokens in turn.

Shapes: B rows, L tokens, n examples, d dimensions, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...core.points import PointShape
from ...errors import refuse_all
from .draws import RowDraws

# the streams of draws that functions use; each function's own come after these
X, TASK, NOISE, OWN = 0, 1, 2, 3


@dataclass(frozen=True)
class Prompts:
    """Of B rows.

    points:     (B, L, d) float32
    values:     (B, L, O) float32, what is to be predicted at each token
    asked:      (B, L, O) bool, of what there is a value
    candidates: (B, C, O), the values among which the nearest to a prediction is its answer; None where
        answers are numbers, or signs
    """

    points: Tensor
    values: Tensor
    asked: Tensor
    candidates: Tensor | None = None


@dataclass(frozen=True)
class Drawn:
    """What prompts are made of.

    rows:   draws of each row
    shared: draws that the rows of an optimizer step (in evaluation of 64 prompts) share
    dims:   (B,) int64, how many dimensions are alive: the others are 0
    """

    rows: RowDraws
    shared: RowDraws
    dims: Tensor

    def alive(self, d: int) -> Tensor:
        """(B, d) bool"""
        return torch.arange(d, device=self.dims.device) < self.dims[:, None]


@dataclass(frozen=True, kw_only=True)
class Function:
    """What a function's part offers beside its options.

    signs:    whether values are 1 or -1, learnt by the logistic loss, and counted right or wrong
    recalled: whether a prediction's answer is the nearest of the prompt's candidates
    steps:    predictions that lead to the value of an example
    drawn_asked: whether draws decide what is asked; elsewhere it is the same in each prompt

    `make` runs inside a recorded step (`core.task.Task`, recordable): all it makes tensors of are its own
    options and what it is given.
    """

    name: ClassVar[str]
    signs: ClassVar[bool] = False
    recalled: ClassVar[bool] = False
    steps: ClassVar[int] = 1
    drawn_asked: ClassVar[bool] = False

    @property
    def shape(self) -> PointShape:
        raise NotImplementedError

    @property
    def dims(self) -> int:
        """Dimensions that a curriculum may leave out."""
        raise NotImplementedError

    @property
    def least_dims(self) -> int:
        """Fewer cannot be left."""
        return 1

    @property
    def examples(self) -> int:
        """Places of a prompt, whose errors are told apart, and which a curriculum may leave out from the
        end."""
        raise NotImplementedError

    @property
    def scale(self) -> float:
        """Errors are reported divided by it: about that of a model that says 0."""
        return 1.0

    @property
    def moments(self) -> Sequence[float]:
        """What the errors of each output are divided by, (O,): `scale`, but where steps differ in size."""
        return (self.scale,) * self.shape.outputs

    def place_of(self, tokens: Tensor) -> Tensor:
        """Which example each of these tokens belongs to, by their places in the prompt: (...) int64 both."""
        raise NotImplementedError

    def places(self) -> Sequence[int]:
        """Which example each token belongs to, (L,)."""
        found: list[int] = self.place_of(torch.arange(self.shape.length)).tolist()
        return found

    def asks(self, drawn: Drawn) -> Tensor:
        """(B, L) bool: at which tokens something is asked."""
        raise NotImplementedError

    def make(self, drawn: Drawn) -> Prompts:
        raise NotImplementedError

    def rolled(self, points: Tensor, made: Tensor) -> Tensor | None:
        """Prompts (B, L, d) whose last example goes on from what a model said of them (B, L, O); None for a
        function whose examples have one step."""
        return None


@dataclass(frozen=True, kw_only=True)
class Examples(Function):
    """A function whose prompt is x_1, y_1, x_2, y_2 ...: each token a point of R^d, y in its first dimension
    and zeros in the others; y is asked at its x (Garg et al., arXiv 2208.01066).

    d: dimensions
    points: examples of a prompt
    """

    d: int = 20
    points: int = 41

    def __post_init__(self) -> None:
        refuse_all(below_one(self, "d", "points") or self.problems())

    def problems(self) -> list[str]:
        """What is wrong with further options."""
        return []

    @property
    def shape(self) -> PointShape:
        return PointShape(width=self.d, outputs=1, length=2 * self.points)

    @property
    def dims(self) -> int:
        return self.d

    @property
    def examples(self) -> int:
        return self.points

    def place_of(self, tokens: Tensor) -> Tensor:
        return tokens // 2

    def asks(self, drawn: Drawn) -> Tensor:
        at = torch.arange(2 * self.points, device=drawn.dims.device) % 2 == 0
        return at.expand(len(drawn.dims), -1)

    def make(self, drawn: Drawn) -> Prompts:
        x = self.inputs(drawn)
        return in_turn(x, self.outputs(drawn, x))

    def inputs(self, drawn: Drawn) -> Tensor:
        """x (B, n, d), normal; dead dimensions are 0."""
        x = drawn.rows.normal(X, self.points, self.d)
        return torch.where(drawn.alive(self.d)[:, None], x, 0)

    def outputs(self, drawn: Drawn, x: Tensor) -> Tensor:
        """y (B, n) of x (B, n, d)."""
        raise NotImplementedError


def in_turn(x: Tensor, y: Tensor) -> Prompts:
    """Prompts of x (B, n, d) and y (B, n)."""
    after = torch.zeros_like(x)
    after[..., 0] = y
    return tokens_in_turn(x, after, y)


def tokens_in_turn(x: Tensor, after: Tensor, y: Tensor) -> Prompts:
    """Prompts of tokens x and those after them, both (B, n, d), with y (B, n) asked at x."""
    points = torch.stack((x, after), dim=2).flatten(1, 2)
    values = torch.stack((y, torch.zeros_like(y)), dim=2).flatten(1, 2)[..., None]
    asked = (torch.arange(points.shape[1], device=x.device) % 2 == 0)[:, None].expand_as(values)
    return Prompts(points, values, asked)


def asked_where(prompts: Prompts, tokens: Tensor) -> Prompts:
    """The same, asked at these tokens (B, L) bool alone."""
    return replace(prompts, asked=prompts.asked & tokens[..., None])


def below_one(part: Function, *names: str) -> list[str]:
    return [
        f"{name} is {getattr(part, name)}; write a number of at least 1"
        for name in names
        if getattr(part, name) < 1
    ]


def above(part: Function, name: str, most: str) -> list[str]:
    """What is wrong with an option that may not be above another."""
    value, limit = getattr(part, name), getattr(part, most)
    return [f"{name} is {value}, above {most}, {limit}; write {limit} at most"] if value > limit else []
