"""The SSD scan in fast plain PyTorch: one operator that walks through chunks of time.

In a chunk of Q tokens the tokens meet in a (Q, Q) matrix a head, C B' o decay; between chunks the state
passes. Some rows of the batch at a time, so that these matrices stay in cache; only the states between chunks
are kept, the backward makes the rest again. All exponents are differences that are at most 0 for a decay.

Layouts: heads h of group g; matrices (b, G, h, Q, Q), states (b, G, N, h P), so that all heads of a group are
one matrix product with its B or C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backend import compute_dtype, without_autocast
from ..torch_ops import Operator, Outputs, nothing
from .decay import LOG2_E

CHUNK = 64
# Elements of the (Q, Q) matrices of all rows of the batch and heads at hand.
CPU_MATRICES = 1 << 18
GPU_MATRICES = 1 << 24
NAMES = ("x", "dt", "A", "B", "C", "D", "state")


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


def _upper(inputs: Inputs) -> dict[int, Tensor]:
    """By the number of steps in a chunk: (Q, Q), -inf above the diagonal, else 0."""
    dtype, device = inputs.dtype, inputs.x.device
    return {
        steps: torch.full((steps, steps), float("-inf"), dtype=dtype, device=device).triu(1)
        for steps in {chunk.stop - chunk.start for chunk in inputs.chunks()}
    }


def _forward(*arguments: Any) -> Outputs:
    """y (B, L, H, P), final state (B, H, P, N), states between chunks (chunks, B, G, N, h P), flattened: torch
    compiles anew for an axis of 0, of 1 and of more."""
    *tensors, reverse, final, keep = arguments
    inputs = Inputs.of(tensors, reverse)
    (batch, _, heads, width), (groups, states) = inputs.x.shape, inputs.B.shape[2:]
    chunks, upper = inputs.chunks(), _upper(inputs)
    y = torch.empty(inputs.x.shape, dtype=inputs.dtype, device=inputs.x.device)
    end = y.new_empty((batch, heads, width, states) if final else 0)
    kept = (max(0, len(chunks) - 1), batch, groups, states, heads // groups * width)
    between = y.new_empty(kept if keep else 0)
    with without_autocast(y.device):
        for rows in inputs.rows():
            state, before = inputs.first_state(rows), None
            for i, chunk in enumerate(chunks):
                part = Chunk(inputs, rows, chunk, before, upper[chunk.stop - chunk.start])
                before = part.last
                out = ((part.decay * part.match) @ part.by_head(part.u)).permute(0, 3, 1, 2, 4).flatten(2, 3)
                if state is not None:
                    out.addcmul_(part.by_token(part.C @ state), part.from_start.unsqueeze(-1))
                if inputs.D is not None:
                    out.addcmul_(part.x, _skip(inputs.D, inputs.dtype))
                inputs.put(y, rows, chunk, out)
                if final or i < len(chunks) - 1:
                    state = _pass_on(part, state)
                    if keep and i < len(chunks) - 1:
                        between[i, rows] = state
            if final:
                end[rows] = 0 if state is None else inputs.as_given(state)
    return y, end, between.flatten()


def _between(inputs: Inputs, kept: Tensor) -> Tensor:
    """The states between chunks in their shape again."""
    (batch, _, heads, width), (groups, states) = inputs.x.shape, inputs.B.shape[2:]
    shape = (batch, groups, states, heads // groups * width)
    return kept.view(kept.numel() // max(1, math.prod(shape)), *shape)


def _pass_on(part: Chunk, state: Tensor | None) -> Tensor:
    added = part.B.transpose(-1, -2) @ part.flat(part.u * part.to_end.unsqueeze(-1))
    return added if state is None else added.add_(part.faded(state))


def _skip(D: Tensor, dtype: torch.dtype) -> Tensor:
    """(H, P) or (H, 1)."""
    return (D if D.dim() == 2 else D.unsqueeze(-1)).to(dtype)


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    reverse, final, _ = flags
    inputs, (grad_y, grad_end) = Inputs.of(tensors, reverse), grads
    dtype, groups, between = inputs.dtype, inputs.B.shape[2], _between(inputs, saved[0])
    found = {
        name: torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)
        for name, tensor in zip(NAMES, tensors, strict=False)
        if tensor is not None
    }
    chunks, upper = inputs.chunks(), _upper(inputs)
    with without_autocast(inputs.x.device):
        for rows in inputs.rows():
            slope: Tensor | None = None
            if final:
                slope = grad_end[rows].to(dtype).unflatten(1, (groups, -1)).movedim(-1, 2).flatten(3)
            for i in range(len(chunks) - 1, -1, -1):
                chunk = chunks[i]
                before = None
                if i and inputs.ids is not None:
                    before = inputs.cut(inputs.ids, rows, chunks[i - 1])[:, -1:]
                part = Chunk(inputs, rows, chunk, before, upper[chunk.stop - chunk.start])
                state = between[i - 1, rows] if i else inputs.first_state(rows)
                gy = inputs.cut(grad_y, rows, chunk)
                slope = _retreat(inputs, part, gy, state, slope, rows, chunk, found)
            if "state" in found and slope is not None:
                found["state"][rows] = inputs.as_given(slope)
    fitted = [
        found[name].to(tensor.dtype) if tensor is not None else nothing(grad_y)
        for name, tensor in zip(NAMES, tensors, strict=False)
    ]
    return (*fitted, nothing(grad_y))


def _retreat(
    inputs: Inputs,
    part: Chunk,
    gy: Tensor,
    state: Tensor | None,
    slope: Tensor | None,
    rows: slice,
    chunk: slice,
    found: dict[str, Tensor],
) -> Tensor | None:
    """Puts one chunk's gradients into `found`; returns that of the state which enters it.

    state, slope: (b, G, N, h P), the state that enters and the gradient of the one that leaves, None for 0.
    """
    u, gy_heads = part.by_head(part.u), part.by_head(gy)
    weights = part.decay * part.match
    gu = (weights.transpose(-1, -2) @ gy_heads).permute(0, 3, 1, 2, 4).flatten(2, 3)
    pairs = torch.matmul(gy_heads, u.transpose(-1, -2)).mul_(part.decay)
    g_match = pairs.sum(2)
    pairs.mul_(part.match)
    # The diagonal is constant; its large entries would cancel between the sums, but not exactly.
    pairs.diagonal(dim1=-2, dim2=-1).zero_()
    g_total = (pairs.sum(-1) - pairs.sum(-2)).flatten(1, 2).transpose(1, 2)  # (b, Q, H)
    gC, gB = g_match @ part.B, g_match.transpose(-1, -2) @ part.C
    entering = None
    if state is not None:
        gy_faded = part.flat(gy * part.from_start.unsqueeze(-1))
        gC.add_(gy_faded @ state.transpose(-1, -2))
        entering = part.C.transpose(-1, -2) @ gy_faded
        g_total = g_total + part.by_token((part.C @ state).mul_(gy_faded)).sum(-1)
    if slope is not None:
        u_end = part.flat(part.u * part.to_end.unsqueeze(-1))
        gB.add_(u_end @ slope.transpose(-1, -2))
        reach = part.B @ slope
        gu.addcmul_(part.by_token(reach), part.to_end.unsqueeze(-1))
        own = part.by_token(reach.mul_(u_end)).sum(-1)
        g_total = g_total - own
        g_last = own.sum(1)
        faded = part.faded(slope)
        if state is not None:
            g_last = g_last + (faded * state).unflatten(3, part.by_group[3:]).sum((2, 4)).flatten(1)
        g_total[:, -1] += g_last
        entering = faded if entering is None else entering.add_(faded)
    g_log = g_total.flip(1).cumsum(1).flip(1)
    A = inputs.A.to(g_log.dtype)
    found["A"].add_((g_log * part.dt).sum((0, 1)))
    inputs.put(found["dt"], rows, chunk, torch.addcmul((gu * part.x).sum(-1), g_log, A))
    gx = gu.mul_(part.dt.unsqueeze(-1))
    if inputs.D is not None:
        gx.addcmul_(gy, _skip(inputs.D, gy.dtype))
        g_skip = (gy * part.x).sum((0, 1))
        found["D"].add_(g_skip if inputs.D.dim() == 2 else g_skip.sum(-1))
    inputs.put(found["x"], rows, chunk, gx)
    inputs.put(found["B"], rows, chunk, gB.transpose(1, 2))
    inputs.put(found["C"], rows, chunk, gC.transpose(1, 2))
    return entering


def _fake(*arguments: Any) -> Outputs:
    *tensors, reverse, final, keep = arguments
    inputs = Inputs.of(tensors, reverse)
    (batch, length, heads, width), (groups, states) = inputs.x.shape, inputs.B.shape[2:]
    y = inputs.x.new_empty(inputs.x.shape, dtype=inputs.dtype)
    # Counted without a list, which would fix a symbolic length.
    between = torch.sym_max(0, (length + CHUNK - 1) // CHUNK - 1)
    end = y.new_empty((batch, heads, width, states) if final else (0,))
    return y, end, y.new_empty(between * batch * heads * width * states if keep else 0)


SSD = Operator(
    "ssd_chunks",
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? initial_state, Tensor? ids, "
    "bool reverse, bool final, bool keep",
    2,
    _forward,
    _backward,
    _fake,
    1,
)
