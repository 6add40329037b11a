"""The step by the references of its parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype
from ..causal_conv1d import reference as conv
from ..rms_norm import reference as norm
from ..ssd_state_update import reference as ssd


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
    group_size: int,
    in_weight: Tensor | None = None,
    update: Callable[..., Tensor] = ssd.ssd_state_update,
) -> Tensor:
    """Arguments as in `transmamba_kernels.mamba2_step`; y (B, H P). update: a step of the state."""
    if in_weight is not None:
        projected = F.linear(projected, in_weight)
    dtype = compute_dtype(projected, conv_state, state, conv_weight, dt_bias, A_log, D, norm_weight)
    (_, heads, width, states), channels = state.shape, conv_weight.shape[0]
    inner = heads * width
    z, xBC, dt = projected.to(dtype).split([inner, channels, heads], dim=-1)
    xBC = conv.causal_conv1d_update(xBC, conv_state, conv_weight, conv_bias, "silu")
    x, B, C = xBC.split([inner, *[(channels - inner) // 2] * 2], dim=-1)
    B, C = (part.unflatten(-1, (-1, states)) for part in (B, C))
    x, A = x.unflatten(-1, (heads, width)), -torch.exp(A_log.to(dtype))
    y = update(state, x, dt, A, B, C, D, None, dt_bias, True).flatten(1)
    # one everywhere: what the norm rounds is rounded once, and then weighed
    normed = norm.rms_norm(y, y.new_ones(inner), eps, z, group_size)
    return norm_weight * normed.to(projected.dtype)
