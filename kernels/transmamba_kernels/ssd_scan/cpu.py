"""The SSD scan in fast PyTorch: step sizes and gate here, the scan itself in one operator."""

from __future__ import annotations

from torch import Tensor

from ..backend import compute_dtype
from ..packing import segments
from ..torch_ops import differentiable
from .blocks import SSD
from .reference import finish, step_size


def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
    return_final_state: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as in `transmamba_kernels.ssd_scan`. y (B, L, H, P), final state (B, H, P, N) or None."""
    dtype = compute_dtype(x, delta, A, B, C, D, z, delta_bias, initial_state)
    dt = step_size(delta, delta_bias, delta_softplus, dtype, lengths)
    inputs = (x, dt, A, B, C, D, initial_state)
    keep = differentiable(*inputs)
    y, state = SSD(*inputs, segments(seq_idx, lengths), reverse, return_final_state, keep)
    return finish(y, x, None, z, lengths).to(x.dtype), state if return_final_state else None
