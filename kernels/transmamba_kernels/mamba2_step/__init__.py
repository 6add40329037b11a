"""One token of a Mamba-2 mixer, between its two projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_divisor, expect_dtype_of, expect_floating, expect_groups, expect_rank
from . import cpu, reference

__all__ = ["mamba2_step"]


def mamba2_step(
    projected: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    eps: float,
    group_size: int | None = None,
    in_weight: Tensor | None = None,
) -> Tensor:
    """z, x, B, C, dt = projected; x, B, C through `causal_conv1d_update` with SiLU; `ssd_state_update` with
    the steps softplus(dt + dt_bias) and the rates -exp(A_log); y = `rms_norm` of what it says, gated by z.

    projected: (B, 2 H P + 2 G N + H). conv_state: (B, H P + 2 G N, S), S at least K - 1, the last tokens, and
    state: (B, H, P, N), both of any floating-point dtype and moved on in place. conv_weight: (H P + 2 G N,
    K). conv_bias: (H P + 2 G N,). dt_bias, A_log, D: (H,). norm_weight: (H P,). group_size: channels that are
    normed together; None for all. in_weight: (2 H P + 2 G N + H, E), the mixer's projection; `projected` is
    then what it projects, (B, E), to whose dtype the product is rounded. y: (B, H P), in the wider dtype of
    `projected` and `norm_weight`. No gradients.

    Raises ValueError for a shape or dtype that does not fit, and for tensors on several devices.
    """
    tensors: dict[str, Any] = {
        "projected": projected,
        "conv_state": conv_state,
        "state": state,
        "conv_weight": conv_weight,
        "conv_bias": conv_bias,
        "dt_bias": dt_bias,
        "A_log": A_log,
        "D": D,
        "norm_weight": norm_weight,
        "in_weight": in_weight,
    }
    expect_floating(**tensors)
    expect_rank("state", state, "(B, H, P, N)")
    expect_rank("conv_state", conv_state, "(B, C, S)")
    expect_rank("conv_weight", conv_weight, "(C, K)")
    (batch, heads, width, states), (channels, taps) = state.shape, conv_weight.shape
    if taps < 1:
        raise ValueError("conv_weight: shape (C, 0), expected (C, K) with K of at least 1")
    inner = heads * width
    groups = (channels - inner) // (2 * states) if states else 0
    if groups < 1 or inner + 2 * groups * states != channels:
        raise ValueError(f"conv_weight: {channels} channels, expected H P + 2 G N = {inner} + 2 G {states}")
    expect_groups("conv_weight", groups, heads, "heads")
    kept = max(conv_state.shape[2], taps - 1)
    expect("conv_state", conv_state, "(B, C, S), S at least K-1,", batch, channels, kept)
    expect("conv_bias", conv_bias, "(C,)", channels)
    if in_weight is None:
        expect("projected", projected, "(B, 2 H P + 2 G N + H)", batch, inner + channels + heads)
    else:
        expect_rank("in_weight", in_weight, "(2 H P + 2 G N + H, E)")
        made, read = inner + channels + heads, in_weight.shape[1]
        expect("in_weight", in_weight, "(2 H P + 2 G N + H, E)", made, read)
        expect("projected", projected, "(B, E)", batch, read)
        expect_dtype_of("projected", projected, in_weight=in_weight)
    for name in ("dt_bias", "A_log", "D"):
        expect(name, tensors[name], "(H,)", heads)
    expect("norm_weight", norm_weight, "(H P,)", inner)
    group = inner if group_size is None else group_size
    expect_divisor("group_size", group, inner)
    path = choose("mamba2_step", *tensors.values())
    run: Callable[..., Tensor] = reference.mamba2_step
    if path == "triton":
        from . import gpu

        run = gpu.mamba2_step
    elif path == "cpu":
        run = cpu.mamba2_step
    with torch.no_grad():
        return run(**tensors, eps=eps, group_size=group)
