"""Launches of the convolution kernels, shared by `causal_conv1d` and `bidirectional_conv1d`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..torch_ops import nothing
from ..triton_common import FUSED, cdiv, on_device_of, power_of_2, rows
from .backward import backward_kernel
from .kernels import forward_kernel

# Tokens whose loads are issued together.
GROUP = 8
# Programs that a large GPU holds at once, at the registers these kernels take: about 15 and 12 for each of
# its 132 multiprocessors. Fewer, longer programs read fewer tokens twice and leave fewer partial sums.
FORWARD_PROGRAMS, BACKWARD_PROGRAMS = 1900, 1600


def block_of(channels: int, taps: int, widest: int) -> int:
    """Channels of a program of one warp: the most, at most `widest`, that leave no lane idle.

    The window of more than 4 taps takes the registers of half the channels.
    """
    widest = widest if taps <= 4 else widest // 2
    for block in (256, 128, 64, 32):
        if block <= widest and channels % block == 0:
            return block
    return 32 if channels <= 32 else min(widest, 64)


def plan(batch: int, length: int, blocks: int, programs: int, late: int) -> tuple[int, int, int]:
    """How time is cut: (chunks, tokens of a chunk, groups of tokens that a program walks).

    `late`: the steps that a program walks beyond its tokens. Chunks are as long as the wish for `programs`
    programs allows, 16 to 128 tokens.
    """
    chunks = max(min(programs // (batch * blocks), cdiv(length, 16)), cdiv(length, 128), 1)
    groups = cdiv(cdiv(length, chunks) + late, GROUP)
    tokens = groups * GROUP - late
    return cdiv(length, tokens), tokens, groups


def run_forward(
    x: Tensor,
    filters: tuple[Tensor | None, ...],
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
    reverse: bool,
    final: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y, y_b (None without a second filter), the final state (None unless asked for).

    filters: weight, bias, weight_b, bias_b.
    """
    weight, bias, weight_b, bias_b = (None if t is None else t.contiguous() for t in filters)
    assert weight is not None
    x = rows(x)
    (batch, length, channels), taps = x.shape, weight.shape[1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    y_b = None if weight_b is None else torch.empty_like(y)
    state = torch.empty(batch, channels, taps - 1, dtype=x.dtype, device=x.device) if final else None
    block = block_of(channels, taps, 256 if weight_b is None else 128)
    blocks = cdiv(channels, block)
    late = 0 if weight_b is None else taps - 1
    chunks, tokens, groups = plan(batch, length, blocks, FORWARD_PROGRAMS, late)
    chunks += final
    with on_device_of(x):
        forward_kernel[(blocks * chunks * batch,)](
            x,
            weight,
            bias,
            weight_b,
            bias_b,
            initial_state,
            None if seq_idx is None else seq_idx.contiguous(),
            None if lengths is None else lengths.contiguous(),
            y,
            y_b,
            state,
            length,
            channels,
            blocks,
            chunks,
            tokens,
            groups,
            x.stride(0),
            x.stride(1),
            *((0, 0, 0) if initial_state is None else initial_state.stride()),
            K=taps,
            KP=power_of_2(taps),
            BD=block,
            GROUP=GROUP,
            SILU=silu,
            REVERSE=reverse,
            num_warps=1,
            **FUSED,
        )
    return y, y_b, state


def run_backward(
    x: Tensor,
    filters: tuple[Tensor | None, ...],
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
    grads: tuple[Tensor, Tensor | None, Tensor | None],
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """dx, dinitial_state, and dweight (D, K), dbias (D,) or nothing, with a second filter then its own, all
    contiguous, the filters' in their dtypes.

    grads: of y, of y_b, of the final state.
    """
    weight, bias, weight_b, bias_b = (None if t is None else t.contiguous() for t in filters)
    assert weight is not None
    dy, dy_b = rows(grads[0]), None if grads[1] is None else rows(grads[1])
    x = rows(x)
    (batch, length, channels), taps = x.shape, weight.shape[1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dinitial = (
        None
        if initial_state is None
        else torch.empty(initial_state.shape, dtype=initial_state.dtype, device=x.device)
    )
    # More a thread spills: the cuts of `seq_idx` and the edges take registers too.
    narrow = weight_b is not None or seq_idx is not None
    block = block_of(channels, taps, 64 if narrow else 128)
    blocks = cdiv(channels, block)
    chunks, tokens, groups = plan(batch, length, blocks, BACKWARD_PROGRAMS, taps - 1)
    slots = (taps + 1) * (1 if weight_b is None else 2)
    partials = torch.empty(batch * chunks, slots, channels, dtype=torch.float32, device=x.device)
    with on_device_of(x):
        backward_kernel[(blocks * chunks * batch,)](
            x,
            weight,
            bias,
            weight_b,
            bias_b,
            initial_state,
            None if seq_idx is None else seq_idx.contiguous(),
            None if lengths is None else lengths.contiguous(),
            dy,
            dy_b,
            None if grads[2] is None else grads[2].contiguous(),
            dx,
            dinitial,
            partials,
            length,
            channels,
            blocks,
            chunks,
            tokens,
            groups,
            x.stride(0),
            x.stride(1),
            dy.stride(0),
            dy.stride(1),
            *((0, 0) if dy_b is None else dy_b.stride()[:2]),
            *((0, 0, 0) if initial_state is None else initial_state.stride()),
            K=taps,
            KP=power_of_2(taps),
            BD=block,
            GROUP=GROUP,
            SILU=silu,
            REVERSE=reverse,
            num_warps=1,
            **FUSED,
        )
    sums = partials.sum(0)
    found: list[Tensor] = []
    for first, (taps_of, bias_of) in zip((0, taps + 1), (filters[:2], filters[2:]), strict=True):
        # Copies: a registered op must not return two views of one tensor.
        if taps_of is not None:
            columns = sums[first : first + taps].T
            found += [columns.to(taps_of.dtype, copy=True, memory_format=torch.contiguous_format)]
            found += [nothing(x) if bias_of is None else sums[first + taps].to(bias_of.dtype, copy=True)]
    return dx, dinitial, found
