"""mamba_ssm's functions of Mamba, over (B, D, L), and the decode step that Mamba-2 shares with it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..causal_conv1d import causal_conv1d
from ..selective_scan import selective_scan
from ..selective_state_update import selective_state_update as channel_update
from ..ssd_state_update import ssd_state_update
from .slots import step_in_slots


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """u, delta, z, out: (B, D, L). A: (D, N), real. B, C: (D, N), (B, N, L) or (B, G, N, L). D, delta_bias:
    (D,). The last state: (B, D, N).
    """

    batch, _, length = u.shape

    def tokens_first(matrix: Tensor) -> Tensor:
        if matrix.dim() == 2:  # the same for all tokens: a group for every channel
            return matrix.expand(batch, length, *matrix.shape)
        return matrix.movedim(-1, 1)

    B, C = tokens_first(B), tokens_first(C)
    if (B.dim(), C.dim()) != (3, 3):
        B, C = _same_groups(B, C), _same_groups(C, B)
    u, delta, z = u.transpose(1, 2), delta.transpose(1, 2), None if z is None else z.transpose(1, 2)
    inputs = (u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    if not return_last_state:
        return selective_scan(*inputs).transpose(1, 2)
    y, state = selective_scan(*inputs, return_final_state=True)
    return y.transpose(1, 2), state


def _same_groups(matrix: Tensor, other: Tensor) -> Tensor:
    """(B, L, G, N) of (B, L, N) or (B, L, G', N), with at least as many groups as the other has."""
    matrix = matrix.unsqueeze(2) if matrix.dim() == 3 else matrix
    wanted = other.shape[2] if other.dim() == 4 else 1
    return matrix if wanted <= matrix.shape[2] else matrix.repeat_interleave(wanted // matrix.shape[2], dim=2)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """A Mamba mixer behind its first projection. xz: (B, 2D, L); conv1d_weight: (D, 1, K) or (D, K); out: (B,
    L, d).

    B and C, where given: (D, N), (B, N, L) or (B, G, N, L), else they come of `x_proj_weight` (R + 2N, D).
    `checkpoint_lvl` is accepted and has no effect.
    """
    rank, states = delta_proj_weight.shape[1], A.shape[1]
    x, z = xz.transpose(1, 2).chunk(2, dim=-1)
    x = causal_conv1d(x, conv1d_weight.flatten(1), conv1d_bias, "silu")
    projected = F.linear(x, x_proj_weight)
    delta = F.linear(projected[..., :rank], delta_proj_weight)
    if dt_rms_weight is not None:
        delta = F.rms_norm(delta, delta.shape[-1:], dt_rms_weight, b_c_dt_rms_eps)

    def matrix(own: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
        own = own if bias is None else own + bias.to(own.dtype)
        return own if scale is None else F.rms_norm(own, own.shape[-1:], scale, b_c_dt_rms_eps)

    if B is None:
        B = matrix(projected[..., rank : rank + states], B_proj_bias, b_rms_weight).transpose(1, 2)
    if C is None:
        C = matrix(projected[..., -states:], C_proj_bias, c_rms_weight).transpose(1, 2)
    y = selective_scan_fn(
        x.transpose(1, 2), delta.transpose(1, 2), A, B, C, D, z.transpose(1, 2), delta_bias, delta_softplus
    )
    assert isinstance(y, Tensor)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """state: (B, D, N) or (B, H, P, N), in place. x, dt, z, out: (B, D) or (B, H, P). A: (D, N) or (H, P, N).
    B, C: (B, N) or (B, G, N). D, dt_bias: (D,) or (H, P). With `state_batch_indices` (B,) these rows of the
    state, where a negative index is padding: its out is 0, and no state moves.

    Where dt, dt_bias and A are one number a head, expanded, that is one decay a head. No gradients.
    """
    if state_batch_indices is not None:

        def step(rows: Tensor) -> Tensor:
            return selective_state_update(rows, x, dt, A, B, C, D, z, dt_bias, dt_softplus)

        with torch.no_grad():
            return step_in_slots("state_batch_indices", state, state_batch_indices, len(x), step)
    if state.dim() == 3:
        return channel_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    B, C = (matrix if matrix.dim() == 3 else matrix.unsqueeze(1) for matrix in (B, C))
    if _tied(dt, 1) and _tied(A, 2) and (dt_bias is None or _tied(dt_bias, 1)):
        bias = None if dt_bias is None else dt_bias[:, 0]
        return ssd_state_update(state, x, dt[..., 0], A[:, 0, 0], B, C, D, z, bias, dt_softplus)

    def flat(tensor: Tensor | None, first: int) -> Any:
        return None if tensor is None else tensor.flatten(first, first + 1)

    rows = state.flatten(1, 2)
    y = channel_update(
        rows, flat(x, 1), flat(dt, 1), flat(A, 0), B, C, flat(D, 0), flat(z, 1), flat(dt_bias, 0), dt_softplus
    )
    if rows.data_ptr() != state.data_ptr():
        state.copy_(rows.view(state.shape))
    return y.view(x.shape)


def _tied(tensor: Tensor, dims: int) -> bool:
    """Whether the last dimensions repeat one number, by being expanded or of size 1."""
    places = range(tensor.dim() - dims, tensor.dim())
    return all(tensor.stride(i) == 0 or tensor.shape[i] == 1 for i in places)
