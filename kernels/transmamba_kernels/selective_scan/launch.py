"""The launches of the selective scan's Triton kernels, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import interpreted
from ..triton_common import FUSED, cdiv, on_device_of, rows
from . import plan
from .backward_kernels import backward_kernel
from .carry_kernels import carry_kernel, combine_kernel
from .kernels import forward_kernel, pack_kernel
from .plan import CHUNK, PAD, Cut, Scan, kept_like, rows_are_small
from .reduce_kernels import reduce_kernel

# Steps whose loads are issued together; the forward's are more where warps are few.
FORWARD_GROUP, FEW_GROUP, BACKWARD_GROUP = 4, 8, 2
# Of the first pass over segments, forward and backward.
CARRY_GROUPS = 8, 4
# Registers a thread, so that three warps fit beside each other on a quarter of a multiprocessor.
REGISTERS = 168
# Warps a multiprocessor up to which they are few and have so many registers, forward and backward.
FEW, FEW_REGISTERS = (8, 10), (255, 200)


class Forward(NamedTuple):
    y: Tensor  # (B, L, D)
    final: Tensor | None  # (B, D, N)
    kept: Tensor | None  # the states before every CHUNK-th step, (B chunks, N, D)
    mean: Tensor | None  # what z gates where two scans are merged
    rates: Tensor | None  # A, and
    rows: Tensor | None  # B with C, as `_pack` makes them; None where they are too large to be saved


class Gradients(NamedTuple):
    """Of one scan's tensors, in their dtypes, A (D, N) and the rest in float32."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor | None
    delta_bias: Tensor
    state: Tensor  # (B, N, D)


def run_forward(
    scan: Scan, initial_state: Tensor | None, final: bool, keep: bool, other: Tensor | None = None
) -> Forward:
    """`other` (B, L, D): the output is the gated mean of this scan and that one."""
    cut, u = Cut.make(scan, backward=False), scan.u
    (batch, length, channels), states, groups = u.shape, scan.A.shape[1], scan.B.shape[2]
    enter = _channels_last(initial_state)
    programs = batch * cut.segments * groups * cut.blocks
    few = programs * cut.warps <= FEW[0] * plan.processors(u.device)
    with on_device_of(u):
        A, packed = _pack(scan, cut)
        if cut.segments > 1:
            enter = _states_between(scan, cut, A, packed, scan.u, None, enter, backward=False)
        y = torch.empty(batch, length, channels, dtype=u.dtype, device=u.device)
        gated_mean = other is not None and scan.z is not None and keep
        mean = torch.empty_like(y) if gated_mean else None
        kept = kept_like(u, scan.A) if keep else None
        last = torch.empty(batch, states, channels, dtype=torch.float32, device=u.device) if final else None
        launch(
            forward_kernel, (programs,),
            u, scan.delta, A, packed, _or(scan.z, u), _or(scan.D, A), _or(scan.delta_bias, A), _or(enter, A),
            _or(scan.seq_idx, A), _or(other, u), y, _or(mean, y), _or(kept, y), _or(last, A),
            length, cut.segment, cut.segments, cut.blocks, groups,
            u.stride(0), scan.delta.stride(0), _stride(scan.z, 0),
            DIM=channels, NSTATE=states, GROUP=channels // groups,
            su_l=u.stride(1), sd_l=scan.delta.stride(1), sz_l=_stride(scan.z, 1),
            HAS_Z=scan.z is not None, HAS_D=scan.D is not None, HAS_BIAS=scan.delta_bias is not None,
            SOFTPLUS=scan.delta_softplus, HAS_ENTER=enter is not None, HAS_SEQ=scan.seq_idx is not None,
            MERGE=other is not None, KEEP=keep, FINAL=final, REVERSE=scan.reverse,
            N=cut.states, BD=cut.block, TC=FEW_GROUP if few else FORWARD_GROUP, K=CHUNK, PAD=PAD, FAR=few,
            warps=cut.warps, registers=_registers(cut, FEW_REGISTERS[0] if few else REGISTERS),
        )  # fmt: skip
    saved = (A, packed) if keep and rows_are_small(u, scan.A, groups) else (None, None)
    return Forward(y, None if last is None else last.transpose(1, 2), kept, mean, *saved)


def run_backward(
    scan: Scan,
    saved: tuple[Tensor, Tensor | None, Tensor | None],
    gy: Tensor,
    g_final: Tensor | None,
) -> Gradients:
    """`saved`: the forward's `kept`, `rates` and `rows`, the last two None or empty where they were not;
    `gy` (B, L, D), `g_final` (B, D, N) or None."""
    kept, A, packed = saved
    cut, u, gy = Cut.make(scan, backward=True), scan.u, rows(gy)
    (batch, length, channels), states, groups = u.shape, scan.A.shape[1], scan.B.shape[2]
    behind = _channels_last(g_final)
    exact = u.dtype == torch.float32
    with on_device_of(u):
        if A is None or packed is None or not packed.numel():
            A, packed = _pack(scan, cut)
        if cut.segments > 1:
            behind = _states_between(scan, cut, A, packed, gy, scan.z, behind, backward=True)

        def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=u.device)

        g_u, g_delta = room(*u.shape, dtype=u.dtype), room(*u.shape, dtype=scan.delta.dtype)
        g_z = None if scan.z is None else room(*u.shape, dtype=scan.z.dtype)
        small = room(batch * cut.segments, states + 2, channels)
        g_state = room(batch, states, channels)
        # Sums over one block of channels; they are many, and the sum of them all is rounded anyway.
        g_rows = room(batch, length, groups * cut.blocks, cut.states, 2, dtype=kept.dtype)
        total = batch * cut.segments * groups * cut.blocks
        programs = min(total, plan.processors(u.device) * max(1, plan.WARPS_PER_PROCESSOR // cut.warps))
        few = programs * cut.warps <= FEW[1] * plan.processors(u.device)
        words = cut.states * cut.block if exact else cut.states * cut.block // 2
        scratch = room(programs * CHUNK * (words + cut.block))
        launch(
            backward_kernel, (programs,),
            gy, u, scan.delta, A, packed, _or(scan.z, u), _or(scan.D, A), _or(scan.delta_bias, A),
            _or(scan.seq_idx, A), kept, _or(behind, A), g_u, g_delta, _or(g_z, g_u), small, g_rows, g_state,
            scratch, length, cut.segment, cut.segments, cut.blocks, groups, total, programs,
            gy.stride(0), u.stride(0), scan.delta.stride(0), _stride(scan.z, 0),
            DIM=channels, NSTATE=states, GROUP=channels // groups,
            sy_l=gy.stride(1), su_l=u.stride(1), sd_l=scan.delta.stride(1), sz_l=_stride(scan.z, 1),
            HAS_Z=scan.z is not None, HAS_D=scan.D is not None, HAS_BIAS=scan.delta_bias is not None,
            SOFTPLUS=scan.delta_softplus, HAS_SEQ=scan.seq_idx is not None, HAS_BEHIND=behind is not None,
            REVERSE=scan.reverse, N=cut.states, BD=cut.block, TC=BACKWARD_GROUP, K=CHUNK, PAD=PAD,
            EXACT=exact, INTERPRETED=interpreted(), warps=cut.warps,
            registers=_registers(cut, FEW_REGISTERS[1] if few else REGISTERS),
        )  # fmt: skip
        g_B, g_C = room(*scan.B.shape, dtype=scan.B.dtype), room(*scan.C.shape, dtype=scan.C.dtype)
        g_A, g_D, g_bias = room(channels, states), room(channels), room(channels)
        count, at_once = batch * length * groups, _rows_at_once(cut, 8)
        launch(
            reduce_kernel, (cdiv(count, at_once) + cdiv(channels, 64) * (states + 2),),
            g_rows, small, g_B, g_C, g_A, g_D, g_bias, count, cut.blocks, batch * cut.segments, channels,
            states, N=cut.states, BT=at_once, LOADS=8, BP=16, BD=64, warps=1,
        )  # fmt: skip
    return Gradients(g_u, g_delta, g_A, g_B, g_C, g_D, g_z, g_bias, g_state)


def _pack(scan: Scan, cut: Cut) -> tuple[Tensor, Tensor]:
    """A log2 e (N, D), and B with C (B, G, PAD + L + PAD, 2, N) in scan order; both in float32."""
    (batch, length, groups, states), channels = scan.B.shape, scan.u.shape[2]
    steps, at_once = length + 2 * PAD, _rows_at_once(cut, 64)
    blocks = cdiv(max(steps, channels), at_once)
    A = torch.empty(states, channels, device=scan.A.device)
    packed = torch.empty(batch, groups, steps, 2, cut.states, device=scan.B.device)
    launch(
        pack_kernel, (blocks * (batch * groups + 1),),
        scan.A, scan.B, scan.C, A, packed, length, batch, groups, blocks, channels, states, steps,
        *scan.A.stride(), *scan.B.stride(), *scan.C.stride(),
        REVERSE=scan.reverse, N=cut.states, BT=at_once, PAD=PAD, warps=4,
    )  # fmt: skip
    return A, packed


def _states_between(
    scan: Scan,
    cut: Cut,
    A: Tensor,
    packed: Tensor,
    x: Tensor,
    z: Tensor | None,
    outer: Tensor | None,
    backward: bool,
) -> Tensor:
    """(B, segments, N, D): the state before each segment, or the gradient of the one behind it."""
    (batch, length, channels), states, groups = x.shape, scan.A.shape[1], scan.B.shape[2]
    between = torch.empty(batch, cut.segments, states, channels, device=x.device)
    sums = torch.empty(batch, cut.segments, channels, device=x.device)
    launch(
        carry_kernel, (batch * (cut.segments - 1) * groups * cut.blocks,),
        x, scan.delta, A, packed, _or(z, x), _or(scan.delta_bias, A), between, sums,
        length, cut.segment, cut.segments, cut.blocks, groups,
        x.stride(0), scan.delta.stride(0), _stride(z, 0),
        DIM=channels, NSTATE=states, GROUP=channels // groups,
        sx_l=x.stride(1), sd_l=scan.delta.stride(1), sz_l=_stride(z, 1),
        HAS_Z=z is not None, HAS_BIAS=scan.delta_bias is not None, SOFTPLUS=scan.delta_softplus,
        REVERSE=scan.reverse, BACKWARD=backward, N=cut.states, BD=cut.block, TC=CARRY_GROUPS[backward],
        PAD=PAD, warps=cut.warps,
    )  # fmt: skip
    launch(
        combine_kernel, (cdiv(channels, 32), batch),
        A, between, sums, _or(outer, A), cut.segments, channels, states,
        HAS_OUTER=outer is not None, BACKWARD=backward, N=cut.states, BD=32, warps=cut.warps,
    )  # fmt: skip
    return between


def _channels_last(state: Tensor | None) -> Tensor | None:
    """(B, D, N) -> (B, N, D), contiguous."""
    return None if state is None else state.transpose(1, 2).contiguous()


def _or(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """A pointer for an argument that the kernel does not read."""
    return instead if tensor is None else tensor


def _stride(tensor: Tensor | None, dim: int) -> int:
    return 0 if tensor is None else tensor.stride(dim)


def _rows_at_once(cut: Cut, most: int) -> int:
    """Of B and C that one program copies or adds up: fewer where states are many, or registers spill."""
    return max(1, most * 64 // max(64, cut.states))


def _registers(cut: Cut, most: int) -> int | None:
    return most if cut.states == 16 else None


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    warps: int,
    registers: int | None = None,
    **constexprs: Any,
) -> None:
    limit = {} if registers is None else {"maxnreg": registers}
    options = dict(num_warps=warps, num_stages=1, **FUSED, **limit)
    kernel[grid](*arguments, **constexprs, **options)
