"""What the distiller hands to a loss: two `Output`s, and their features brought side by side.

Shapes: B images, M matched tokens (or the m of them that were drawn), T teacher channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.output import Capture, Output, Term
from ..students.student import Sublayer
from .aligner import Aligner

_EPSILON = 1e-6


@dataclass(frozen=True)
class Geometry:
    """Sizes and correspondences that losses are built from.

    pairs:   student layer -> teacher block whose residual streams are compared
    sources: student mixer -> (teacher block, sublayer) whose work it takes over
    state:   width of the student mixers' B and C (B, L, state)
    ranks:   each teacher token's place in the student's sequence, -1 for those it lacks; None where the patch
        grids differ
    """

    num_layers: int
    num_blocks: int
    teacher_width: int
    pairs: dict[int, int]
    sources: dict[int, tuple[int, Sublayer]]
    state: int = 0
    ranks: tuple[int, ...] | None = None


@dataclass
class Signals:
    """One micro-batch as losses see it. `tokens` are positions among the matched tokens, None for all."""

    student: Output
    teacher: Output | None
    targets: Tensor
    aligner: Aligner | None = None
    tokens: Tensor | None = None
    _units: dict[tuple[bool, tuple[int, ...]], Tensor] = field(default_factory=dict)

    @property
    def guide(self) -> Output:
        assert self.teacher is not None, "checked when the distiller was built"
        return self.teacher

    @property
    def bridge(self) -> Aligner:
        assert self.aligner is not None, "checked when the distiller was built"
        return self.aligner

    def teacher_hidden(self, blocks: Sequence[int]) -> Tensor:
        """The teacher's residual streams after `blocks` on the matched tokens, (n, B, m, T)."""
        return torch.stack(self._teacher_tokens(blocks))

    def teacher_units(self, blocks: Sequence[int], standardise: bool = False) -> Tensor:
        """The same, every token at length 1, in the type of a product under autocast; in units of the
        teacher's statistics first, where asked."""
        key = (standardise, tuple(blocks))
        if key not in self._units:
            # one after the other: all in float32 at once would be the largest thing in memory
            tokens = zip(blocks, self._teacher_tokens(blocks), strict=True)
            own = (self.bridge.standardise([t], x[None])[0] if standardise else x for t, x in tokens)
            self._units[key] = _stack([unit(x) for x in own])
        return self._units[key]

    def _teacher_tokens(self, blocks: Sequence[int]) -> list[Tensor]:
        return [self.bridge.teacher_tokens(self.guide.hidden[t], self.tokens) for t in blocks]

    def student_hidden(self, layers: Sequence[int]) -> Tensor:
        """The student's residual streams after `layers` in the teacher's space, (n, B, m, T).

        All layers in one product, here and in `student_branches`: a GPU has little to do in each.
        """
        tokens = [self.bridge.student_tokens(self.student.hidden[k], self.tokens) for k in layers]
        return self.bridge.project_all(layers, _stack(tokens))

    def student_branches(self, layers: Sequence[int]) -> Tensor:
        """The layers' forward and backward branch features in the teacher's space, (2, n, B, m, T)."""
        branches, bridge = [self.student.branches[k] for k in layers], self.bridge

        def tokens(x: Tensor) -> Tensor:  # the student has kept the drawn ones alone
            return bridge.student_tokens(x) if self.tokens is None else x

        made = bridge.project_all(layers, _stack([tokens(branch.merged) for branch in branches]))
        halves = {
            k: tokens(branch.half)
            for k, branch in zip(layers, branches, strict=True)
            if branch.half is not None
        }
        if not halves:
            return made.expand(2, *made.shape)
        # one product for the mixer's projection and ours: the features in between are never needed
        through = [branch.weight for branch in branches if branch.weight is not None]
        spread = bridge.project_all(
            list(halves), _stack(list(halves.values())), _stack(through) if through else None
        )
        if len(halves) < len(layers):  # a layer that kept its attention has one feature for both
            each, none = dict(zip(halves, spread, strict=True)), torch.zeros_like(made[0])
            spread = torch.stack([each.get(k, none) for k in layers])
        return torch.stack((made + spread, made - spread))


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stacked in the type that a product under autocast would give them, so that nothing is kept twice."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        tensors = [x.to(dtype) for x in tensors]
    return torch.stack(tensors)


class Loss(nn.Module):
    """A loss over a micro-batch: returns sums and counts, never an average.

    needs_teacher:  whether it reads `Signals.teacher`
    uses_logits:    whether it reads the student's logits (so that its head gets a gradient)
    teacher_forced: whether it wants the student's mixers run on the teacher's own inputs instead of a
    forward pass
    standardises:   whether it wants the aligner to know the teacher's statistics
    """

    needs_teacher = True
    uses_logits = False
    teacher_forced = False
    standardises = False

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def student_capture(self) -> Capture:
        return Capture()

    def teacher_capture(self) -> Capture:
        return Capture()

    def projections(self) -> set[int]:
        """Student layers whose projection this loss reads."""
        return set()

    def count(self, targets: Tensor) -> int:
        """How many items this loss has in a micro-batch: what the batch alone says, so that the trainer can
        add up a whole step before it runs it."""
        return len(targets)

    def observe(self, parts: Tensor) -> None:
        """Per-layer means of the step just taken, over all ranks and micro-batches."""

    def part_names(self) -> list[str]:
        """Names of the entries of `Term.parts`, flattened, for the log."""
        return []

    def forward(self, signals: Signals) -> Term:
        raise NotImplementedError


def check_weight(weight: float, momentum: float = 0.0, name: str = "weight") -> None:
    """Raises ValueError for a loss weight, or the momentum of a running mean, that cannot be meant."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name} is {weight}; write 0 or a number above it")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; write a number from 0 to below 1")


class _TokenCosine(torch.autograd.Function):
    """Cosine of each token of a with one of length 1, a constant. Few passes over the features, none in a
    wider type than they came in: the composed operators cost more than the student's own layers."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, unit_b: Tensor) -> Tensor:
        norm_a = token_norms(a)
        value = (a * unit_b).sum(dim=-1, dtype=norm_a.dtype) / norm_a
        ctx.save_for_backward(a, unit_b, norm_a, value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        a, unit_b, norm_a, value = ctx.saved_tensors
        toward = (grad / norm_a).to(a.dtype).unsqueeze(-1)
        along = (-grad * value / norm_a.square()).to(a.dtype).unsqueeze(-1)
        return torch.addcmul(unit_b * toward, a, along), None


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine over tokens of each image: (..., B, M, T), (..., B, M, T) -> (..., B) float32; b at length
    1 already, `unit`, a constant, and it may have fewer leading axes."""
    return _TokenCosine.apply(a, b.detach().to(a.dtype)).mean(dim=-1)


def unit(x: Tensor) -> Tensor:
    """Tokens at length 1, before anything is multiplied: the product of two raw streams overflows in
    float16."""
    return x / token_norms(x).unsqueeze(-1)


def token_norms(x: Tensor) -> Tensor:
    """Lengths of the tokens, (..., T) -> (...), at least 1e-6; float64 stays, all else becomes float32."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(x, dim=-1, dtype=wide).clamp_min(_EPSILON)


def stack_parts(values: list[Tensor]) -> Tensor:
    return torch.stack([value.detach().float().sum() for value in values])
