"""What a call of the selective scan's Triton kernels gets, how it is cut into programs, and what it keeps."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..triton_common import cdiv, power_of_2, rows

# Steps between two kept states: with 16 states in bfloat16, 2 bytes an element of u.
CHUNK = 16
# Rows of zeros around the packed B and C, more than any group of steps reads past the end.
PAD = 16
WARPS_PER_PROCESSOR = 12
# Warps a multiprocessor from which on the forward is not cut in time.
ENOUGH = 4
# The fewest chunks for which a segment is worth its second scan.
CHUNKS_A_SEGMENT = 8
LARGEST_STATE = 256


class Scan(NamedTuple):
    """The tensors of one direction, as they are given; B and C with their axis of groups."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    seq_idx: Tensor | None
    delta_softplus: bool
    reverse: bool

    @classmethod
    def make(
        cls,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        seq_idx: Tensor | None,
        delta_softplus: bool,
        reverse: bool,
    ) -> Scan:
        B, C = (x if x.dim() == 4 else x.unsqueeze(2) for x in (B, C))
        if A.shape[1] > LARGEST_STATE:
            raise ValueError(f"A: state size {A.shape[1]}, the Triton kernels take at most {LARGEST_STATE}")
        seq_idx = None if seq_idx is None else seq_idx.to(torch.int32).contiguous()
        D, delta_bias = (None if x is None else x.contiguous() for x in (D, delta_bias))
        return cls(
            rows(u), rows(delta), A, B, C, D, None if z is None else rows(z), delta_bias, seq_idx,
            delta_softplus, reverse,
        )  # fmt: skip


class Cut(NamedTuple):
    """How one scan is cut: blocks of channels, and segments of time where the blocks alone are too few."""

    states: int  # as `padded_states` has them
    block: int  # channels
    blocks: int  # a group of B and C
    segment: int  # steps
    segments: int
    warps: int

    @classmethod
    def make(cls, scan: Scan, backward: bool) -> Cut:
        batch, length, channels = scan.u.shape
        groups = scan.B.shape[2]
        states = padded_states(scan.A)
        block = 32 if states == 16 else 16
        warps = 1 if states <= 32 else 4 if states <= 128 else 8  # 16 channels at least: a tensor core's
        blocks = cdiv(channels // groups, block)
        programs = batch * groups * blocks
        wanted = processors(scan.u.device) * WARPS_PER_PROCESSOR // warps
        enough = not backward and programs * warps >= ENOUGH * processors(scan.u.device)
        wanted = 1 if enough or 2 * programs >= wanted else wanted
        # A segment costs a second, cheaper scan; resets would have to travel with the states.
        segments = (
            1
            if scan.seq_idx is not None
            else max(1, min(wanted // programs, length // (CHUNKS_A_SEGMENT * CHUNK)))
        )
        segment = cdiv(cdiv(length, segments), CHUNK) * CHUNK
        return cls(states, block, blocks, segment, cdiv(length, segment), warps)


def saved_like(u: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty, as large as what the forward of a scan saves for its backward: `kept`, and `rates` and `rows`
    or nothing for them."""
    groups = B.shape[2] if B.dim() == 4 else 1
    if not rows_are_small(u, A, groups):
        return kept_like(u, A), u.new_empty(0), u.new_empty(0)
    rates = u.new_empty((A.shape[1], u.shape[2]), dtype=torch.float32)
    shape = (u.shape[0], groups, u.shape[1] + 2 * PAD, 2, padded_states(A))
    packed = u.new_empty(shape, dtype=torch.float32)
    return kept_like(u, A), rates, packed


def rows_are_small(u: Tensor, A: Tensor, groups: int) -> bool:
    """Whether rates and rows, saved, leave the whole at 3 bytes an element of u (bfloat16, 16 states)."""
    (batch, length, channels), states = u.shape, A.shape[1]
    rows = batch * groups * (length + 2 * PAD) * 2 * padded_states(A)
    return 4 * (rows + channels * states) <= 0.9 * batch * length * channels


def padded_states(A: Tensor) -> int:
    """A power of two, at least the 16 that a matrix product needs."""
    return max(16, power_of_2(A.shape[1]))


def kept_like(u: Tensor, A: Tensor) -> Tensor:
    batch, length, channels = u.shape
    dtype = torch.float32 if u.dtype == torch.float32 else torch.bfloat16
    # Rows and chunks in one axis: torch compiles anew for an axis of 1 and of more.
    shape = (batch * cdiv(length, CHUNK), A.shape[1], channels)
    return torch.empty(shape, dtype=dtype, device=u.device)


def processors(device: torch.device) -> int:
    if device.type == "cuda":
        return _count(device.index or 0)
    return 132 if device.type == "meta" else 4


@functools.cache
def _count(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
