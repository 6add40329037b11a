"""What the distiller hands to a loss: two `Output`s, and their features brought side by side.

Shapes: B images, M matched tokens (or the m of them that were drawn), T teacher channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aligner import Aligner
from .outputs import Capture, Output, Term
from .student import Sublayer


@dataclass(frozen=True)
class Geometry:
    """Sizes and correspondences that losses are built from.

    pairs:   student layer -> teacher block whose residual streams are compared
    sources: student mixer -> (teacher block, sublayer) whose work it takes over
    state:   width of the student mixers' B and C (B, L, state)
    """

    num_layers: int
    num_blocks: int
    teacher_width: int
    pairs: dict[int, int]
    sources: dict[int, tuple[int, Sublayer]]
    state: int = 0


@dataclass
class Signals:
    """One micro-batch as losses see it. `tokens` are positions among the matched tokens, None for all."""

    student: Output
    teacher: Output | None
    targets: Tensor
    aligner: Aligner | None = None
    tokens: Tensor | None = None
    _teacher_cache: dict[int, Tensor] = field(default_factory=dict)

    @property
    def guide(self) -> Output:
        assert self.teacher is not None, "checked when the distiller was built"
        return self.teacher

    @property
    def bridge(self) -> Aligner:
        assert self.aligner is not None, "checked when the distiller was built"
        return self.aligner

    def teacher_hidden(self, block: int) -> Tensor:
        """The teacher's residual stream after `block` on the matched tokens, (B, m, T)."""
        if block not in self._teacher_cache:
            x = self.bridge.teacher_tokens(self.guide.hidden[block])
            self._teacher_cache[block] = x if self.tokens is None else x[:, self.tokens]
        return self._teacher_cache[block]

    def student_hidden(self, k: int) -> Tensor:
        """The student's residual stream after layer k in the teacher's space, (B, m, T)."""
        x = self.bridge.student_tokens(self.student.hidden[k])
        return self.bridge.project(k, x if self.tokens is None else x[:, self.tokens])

    def student_branches(self, k: int) -> tuple[Tensor, Tensor]:
        """Layer k's forward and backward branch features in the teacher's space, each (B, m, T)."""
        forward, backward = self.student.branches[k]
        if self.tokens is None:
            forward, backward = self.bridge.student_tokens(forward), self.bridge.student_tokens(backward)
        return self.bridge.project(k, forward), self.bridge.project(k, backward)


class Loss(nn.Module):
    """A loss over a micro-batch: returns sums and counts, never an average.

    needs_teacher:  whether it reads `Signals.teacher`
    uses_logits:    whether it reads the student's logits (so that its head gets a gradient)
    teacher_forced: whether it wants the student's mixers run on the teacher's own inputs instead of a
    forward pass
    """

    needs_teacher = True
    uses_logits = False
    teacher_forced = False

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


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine over tokens of each image: (B, M, T), (B, M, T) -> (B,), in float32."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1, eps=1e-6).mean(dim=-1)


def stack_parts(values: list[Tensor]) -> Tensor:
    return torch.stack([value.detach().float().sum() for value in values])
