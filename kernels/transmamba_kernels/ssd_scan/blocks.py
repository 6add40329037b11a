"""How the fast SSD scan cuts its work, and what forward and backward both need of one chunk of time.

Layouts: heads h of group g; matrices (b, G, h, Q, Q), states (b, G, N, h P), so that all heads of a group are
one matrix product with its B or C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backend import compute_dtype
from .decay import LOG2_E

CHUNK = 64
# Elements of the (Q, Q) matrices of all rows of the batch and heads at hand.
CPU_MATRICES = 1 << 18
GPU_MATRICES = 1 << 24


@dataclass(frozen=True)
class Inputs:
    """As the operator gets them, and how they are cut: `rows` of the batch, `chunks` in scan order."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    initial_state: Tensor | None
    ids: Tensor | None
    reverse: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, tensors: Sequence[Any], reverse: bool) -> Inputs:
        """tensors: the operator's, in its order."""
        x, dt, A, B, C, D, initial_state, ids = tensors
        dtype = compute_dtype(x, dt, A, B, C, D, initial_state)
        return cls(x, dt, A, B, C, D, initial_state, ids, reverse, dtype)

    def rows(self) -> list[slice]:
        batch, heads = self.x.shape[0], self.x.shape[2]
        room = CPU_MATRICES if self.x.device.type == "cpu" else GPU_MATRICES
        step = max(1, room // (heads * min(CHUNK, max(1, self.x.shape[1])) ** 2))
        return [slice(i, min(i + step, batch)) for i in range(0, batch, step)]

    def chunks(self) -> list[slice]:
        length = self.x.shape[1]
        found = [slice(i, min(i + CHUNK, length)) for i in range(0, length, CHUNK)]
        return found[::-1] if self.reverse else found

    def cut(self, tensor: Tensor, rows: slice, chunk: slice) -> Tensor:
        """(b, Q, ...), in scan order, in the operator's arithmetic."""
        part = tensor[rows, chunk]
        part = part.flip(1) if self.reverse else part
        return part if tensor is self.ids else part.to(self.dtype)

    def put(self, tensor: Tensor, rows: slice, chunk: slice, part: Tensor) -> None:
        tensor[rows, chunk] = part.flip(1) if self.reverse else part

    def first_state(self, rows: slice) -> Tensor | None:
        if self.initial_state is None:
            return None
        state = self.initial_state[rows].to(self.dtype).unflatten(1, (self.B.shape[2], -1))  # (b, G, h, P, N)
        return state.movedim(-1, 2).flatten(3)

    def as_given(self, state: Tensor) -> Tensor:
        """(b, G, N, h P) -> (b, H, P, N)."""
        return state.unflatten(3, (-1, self.x.shape[3])).movedim(2, -1).flatten(1, 2)


class Chunk:
    """One chunk of some rows: what forward and backward both need.

    upper: (Q, Q), -inf above the diagonal. before: (b, 1), the ids that the entering state belongs to; None
    for those of the chunk's first token.
    """

    def __init__(
        self, inputs: Inputs, rows: slice, chunk: slice, before: Tensor | None, upper: Tensor
    ) -> None:
        groups = inputs.B.shape[2]
        self.x, self.dt = inputs.cut(inputs.x, rows, chunk), inputs.cut(inputs.dt, rows, chunk)
        B, C = inputs.cut(inputs.B, rows, chunk), inputs.cut(inputs.C, rows, chunk)
        self.B, self.C = B.transpose(1, 2).contiguous(), C.transpose(1, 2).contiguous()  # (b, G, Q, N)
        batch, steps, heads, width = self.x.shape
        self.by_group = (batch, steps, groups, heads // groups, width)
        self.u = self.x * self.dt.unsqueeze(-1)
        # Sums grow, and only their differences matter: float64 keeps weak decays behind a strong one.
        exact = self.dt.dtype if self.dt.device.type == "mps" else torch.float64
        total = (self.dt * (inputs.A.to(self.dt.dtype) * LOG2_E)).cumsum(1, dtype=exact)  # (b, Q, H), log2
        self.from_start = total.to(self.dt.dtype).exp2()
        self.to_end = (total[:, -1:] - total).to(self.dt.dtype).exp2()
        self.through = self.from_start[:, -1]  # (b, H)
        by_head = total.transpose(1, 2).contiguous()
        decay = torch.empty((batch, heads, steps, steps), dtype=self.dt.dtype, device=self.dt.device)
        torch.sub(by_head.unsqueeze(-1), by_head.unsqueeze(-2), out=decay).add_(upper)
        self.last: Tensor | None = None
        if inputs.ids is not None:
            ids = inputs.cut(inputs.ids, rows, chunk)
            self.last = ids[:, -1:]
            before = ids[:, :1] if before is None else before
            decay.masked_fill_((ids.unsqueeze(-1) != ids.unsqueeze(-2)).unsqueeze(1), float("-inf"))
            self.from_start = self.from_start * (ids == before).unsqueeze(-1)
            self.to_end = self.to_end * (ids == self.last).unsqueeze(-1)
            self.through = self.through * (self.last == before)
        self.decay = decay.exp2_().unflatten(1, (groups, -1))  # (b, G, h, Q, Q)
        self.match = (self.C @ self.B.transpose(-1, -2)).unsqueeze(2)  # (b, G, 1, Q, Q)

    def by_head(self, tensor: Tensor) -> Tensor:
        """(b, Q, H, P) -> (b, G, h, Q, P), contiguous."""
        return tensor.view(self.by_group).permute(0, 2, 3, 1, 4).contiguous()

    def flat(self, tensor: Tensor) -> Tensor:
        """(b, Q, H, P) -> (b, G, Q, h P)."""
        return tensor.reshape(self.by_group).transpose(1, 2).flatten(3)

    def by_token(self, tensor: Tensor) -> Tensor:
        """(b, G, Q, h P) -> (b, Q, H, P)."""
        return tensor.unflatten(3, self.by_group[3:]).transpose(1, 2).flatten(2, 3)

    def faded(self, state: Tensor) -> Tensor:
        """The state (b, G, N, h P) after the chunk's decay."""
        factor = self.through.unflatten(1, self.by_group[2:4])[:, :, None, :, None]
        return (state.unflatten(3, self.by_group[3:]) * factor).flatten(3)


def upper_triangles(inputs: Inputs) -> dict[int, Tensor]:
    """By the number of steps in a chunk: (Q, Q), -inf above the diagonal, else 0."""
    dtype, device = inputs.dtype, inputs.x.device
    return {
        steps: torch.full((steps, steps), float("-inf"), dtype=dtype, device=device).triu(1)
        for steps in {chunk.stop - chunk.start for chunk in inputs.chunks()}
    }
