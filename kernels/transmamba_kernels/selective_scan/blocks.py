"""How the fast selective scan cuts its work, lays out its buffers, and runs one chunk of time forwards.

Layout of states: (time, batch, group, N, channels of the group). Channels are innermost, so that every
elementwise pass runs over long contiguous rows and the contractions over N are sums of rows.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

LOG2_E = math.log2(math.e)

# Elements of one buffer, of which the backward holds three. Smaller ones cost more in calls than cache saves.
CPU_BUFFER = 1 << 20
GPU_BUFFER = 1 << 26
# Below this many steps a chunk, the kept states would outweigh the inputs.
FEWEST_STEPS = 16


class Switches(NamedTuple):
    softplus: bool
    reverse: bool
    final_state: bool
    differentiable: bool


@dataclass(frozen=True)
class Plan:
    """How the work is cut: `rows` of the batch at a time, `steps` of time at a time."""

    rows: list[slice]
    steps: list[slice]  # in the order of the scan

    @classmethod
    def make(cls, batch: int, length: int, width: int, device: torch.device, reverse: bool) -> Plan:
        """`width`: elements of one token's state, D N."""
        steps = _most_steps(batch, width, device)
        rows = max(1, _buffer(device) // max(1, min(steps, length) * width))
        time = _even_slices(length, steps)
        return cls(_even_slices(batch, rows), time[::-1] if reverse else time)

    def buffer_shape(self, state: torch.Size) -> tuple[int, ...]:
        """Of the largest chunk; `state`: (G, N, D/G)."""
        return (_longest(self.steps), _longest(self.rows), *state)


def count_steps(batch: int, length: int, width: int, device: torch.device) -> int:
    """How many `Plan.steps` there are. Batch and length may be symbolic: a list would fix the length."""
    return -(-length // _most_steps(batch, width, device))


def _buffer(device: torch.device) -> int:
    return CPU_BUFFER if device.type == "cpu" else GPU_BUFFER


def _most_steps(batch: int, width: int, device: torch.device) -> int:
    """Steps of a chunk, at most. It branches on the width alone: batch and length may be symbolic."""
    buffer, few = _buffer(device), 2 * FEWEST_STEPS
    if 2 * few * width > buffer:  # one row at a time, since two would not fit
        return max(FEWEST_STEPS, buffer // width)
    return cast(int, torch.sym_max(few, buffer // torch.sym_max(1, batch * width)))


def _longest(slices: list[slice]) -> int:
    return max(part.stop - part.start for part in slices)


def _even_slices(total: int, most: int) -> list[slice]:
    """`total` in as few slices as hold at most `most` each, all of nearly one size."""
    count = -(-total // most)
    bounds = [total * i // count for i in range(count + 1)] if count else []
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


class Room:
    """Memory for one array of a chunk, reused by all chunks of a call: no allocation inside the loops."""

    def __init__(self, steps: int, rows: int, *state: int, like: Tensor) -> None:
        self.state = state
        self.flat = like.new_empty(steps * rows * math.prod(state))

    def take(self, steps: int, rows: int) -> Tensor:
        """(steps, rows, G, N, D/G), contiguous for any number of rows."""
        return self.flat[: steps * rows * math.prod(self.state)].view(steps, rows, *self.state)


class Saved(NamedTuple):
    """The inputs, and with them for the backward the ungated output (where z is given) and states."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    seq_idx: Tensor | None
    ungated: Tensor | None = None
    between: Tensor | None = None

    def grouped(self) -> Saved:
        """B and C with their axis of groups."""
        if self.B.dim() == 4 and self.C.dim() == 4:
            return self
        B = self.B if self.B.dim() == 4 else self.B.unsqueeze(2)
        C = self.C if self.C.dim() == 4 else self.C.unsqueeze(2)
        return self._replace(B=B, C=C)


@dataclass(frozen=True)
class Block:
    """Some batch rows, time first: dt, u, x = dt u (L, b, G, D/G); B, C (L, b, G, N); and of packed rows keep
    (L, b), 0 where a sequence begins, and padding (L, b, 1, 1)."""

    dt: Tensor
    u: Tensor
    x: Tensor
    B: Tensor
    C: Tensor
    keep: Tensor | None
    padding: Tensor | None

    @classmethod
    def load(cls, rows: slice, saved: Saved, dtype: torch.dtype, switches: Switches) -> Block:
        """Copies the rows out of the inputs; B and C must have their axis of groups."""
        groups = saved.B.shape[2]
        dt = time_first(saved.delta[rows], dtype)
        if saved.delta_bias is not None:
            dt += saved.delta_bias
        if switches.softplus:
            dt = F.softplus(dt)
        u = time_first(saved.u[rows], dtype)
        by_group = (*u.shape[:2], groups, u.shape[2] // groups)
        dt, u = dt.view(by_group), u.view(by_group)
        keep, padding = None, None
        if saved.seq_idx is not None:
            keep = _keep(saved.seq_idx[rows], switches.reverse, dtype)
            padding = saved.seq_idx[rows].T[..., None, None] < 0
            dt = dt.masked_fill(padding, 0)
        B, C = time_first(saved.B[rows], dtype), time_first(saved.C[rows], dtype)
        return cls(dt, u, dt * u, B, C, keep, padding)

    def advance(
        self, chunk: slice, A: Tensor, enter: Tensor | None, decay_room: Room, state_room: Room, reverse: bool
    ) -> Chunk:
        """All decays and states of one chunk. A: (G, N, D/G), times log2 e. `enter`: (b, G, N, D/G), or None.

        None stands for zero. `enter` may lie in `state_room`, as the `last` of the chunk before.
        """
        steps, rows = chunk.stop - chunk.start, self.dt.shape[1]
        decay, states = decay_room.take(steps, rows), state_room.take(steps + 1, rows)
        after, before = (states[:-1], states[1:]) if reverse else (states[1:], states[:-1])
        first = states[-1] if reverse else states[0]
        _ = first.zero_() if enter is None else first.copy_(enter)
        torch.mul(self.dt[chunk].unsqueeze(-2), A, out=decay)
        decay.exp2_()  # several times faster than exp_ where MKL's exp has no fast path
        if self.keep is not None:
            decay.mul_(self.keep[chunk].view(steps, rows, 1, 1, 1))
        torch.mul(self.x[chunk].unsqueeze(-2), self.B[chunk].unsqueeze(-1), out=after)
        decays, slots = decay.unbind(0), states.unbind(0)
        if reverse:
            for t in range(steps - 1, -1, -1):
                slots[t].addcmul_(decays[t], slots[t + 1])
        else:
            for t in range(steps):
                slots[t + 1].addcmul_(decays[t], slots[t])
        return Chunk(decay, after, before, slots[0] if reverse else slots[-1])


class Chunk(NamedTuple):
    decay: Tensor  # (q, b, G, N, D/G), as the next two
    after: Tensor  # the state after each step
    before: Tensor  # the state that each step found
    last: Tensor  # the state that leaves, (b, G, N, D/G)


def time_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(b, L, ...) -> (L, b, ...), contiguous: every buffer after it would inherit a permuted layout."""
    x = x.transpose(0, 1)
    return torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x)


def _keep(seq_idx: Tensor, reverse: bool, dtype: torch.dtype) -> Tensor:
    """(L, b): 0 where a step begins another sequence than the step that was scanned before it, else 1, as in
    padding, on which no state moves."""
    ids = seq_idx.transpose(0, 1)
    keep = torch.ones(ids.shape, dtype=dtype, device=ids.device)
    inner, own = (keep[:-1], ids[:-1]) if reverse else (keep[1:], ids[1:])
    inner.copy_((ids[1:] == ids[:-1]) | (own < 0))
    return keep


def to_groups(state: Tensor, groups: int) -> Tensor:
    """(..., D, N) -> (..., G, N, D/G)."""
    return state.unflatten(-2, (groups, state.shape[-2] // groups)).transpose(-1, -2)


def from_groups(state: Tensor) -> Tensor:
    """(..., G, N, D/G) -> (..., D, N)."""
    return state.transpose(-1, -2).flatten(-3, -2)
