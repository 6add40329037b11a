"""mamba_ssm's functions of Mamba-2, channels last there too."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype
from ..causal_conv1d import causal_conv1d
from ..packing import seq_idx_from_cu_seqlens
from ..ssd_scan import ssd_scan
from ..ssd_scan.reference import step_size
from .conv import silu_name

NO_LIMIT = (0.0, math.inf)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """x, z, out: (B, L, H, P). dt: (B, L, H). A, dt_bias: (H,). B, C: (B, L, G, N). D: (H,) or (H, P).
    States: (B, H, P, N). `chunk_size` is accepted and has no effect. Without `seq_idx`, `cu_seqlens` (S + 1,)
    says which tokens of a row go together. With `return_varlen_states`, for a batch of 1, the last output is
    the state behind each of these sequences, (S, H, P, N).
    """
    if seq_idx is None and cu_seqlens is not None:
        seq_idx = seq_idx_from_cu_seqlens(cu_seqlens, x.shape[1]).expand(x.shape[0], -1)
    if tuple(dt_limit) != NO_LIMIT:
        dt = step_size(dt, dt_bias, dt_softplus, compute_dtype(x, dt, A, B, C, D, z, dt_bias, initial_states))
        dt, dt_bias, dt_softplus = dt.clamp(*dt_limit), None, False
    inputs = (x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_states, seq_idx)
    out: Any = ssd_scan(*inputs, return_final_state=True) if return_final_states else ssd_scan(*inputs)
    if not return_varlen_states:
        return out
    if cu_seqlens is None or x.shape[0] != 1:
        raise ValueError(
            f"cu_seqlens: {cu_seqlens}, expected offsets, and a batch of 1, with return_varlen_states"
        )
    begins, lengths = cu_seqlens[:-1], cu_seqlens.diff()
    places = begins.unsqueeze(1) + torch.arange(int(lengths.max()), device=x.device)
    x, dt, B, C = (tensor[0, places.clamp(max=x.shape[1] - 1)] for tensor in (x, dt, B, C))
    _, states = ssd_scan(
        x,
        dt,
        A,
        B,
        C,
        delta_bias=dt_bias,
        delta_softplus=dt_softplus,
        lengths=lengths,
        return_final_state=True,
    )
    return (*(out if return_final_states else (out,)), states)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """A Mamba-2 mixer behind its first projection. zxbcdt: (B, L, 2 H P + 2 G N + H); conv1d_weight: (H P +
    2 G N, K); D: (H,), then with `headdim`, or (H, P). out: (B, L, H P), or (B, L, d) by `outproj_weight` (d,
    H P). Without the columns of an MLP in front, which mamba_ssm takes.

    Raises ValueError for `zxbcdt` of another width.
    """
    heads = A.shape[0]
    if D.dim() == 2:
        headdim = D.shape[1]
    if headdim is None:
        raise ValueError(f"headdim: None, expected an integer where D is (H,), here {tuple(D.shape)}")
    dim = heads * headdim
    wanted = dim + conv1d_weight.shape[0] + heads
    if zxbcdt.shape[-1] != wanted:
        raise ValueError(
            f"zxbcdt: {zxbcdt.shape[-1]} columns, expected 2 H P + 2 G N + H = {wanted}; an MLP part "
            "in front is not built"
        )
    z, xBC, dt = zxbcdt.split([dim, zxbcdt.shape[-1] - dim - heads, heads], dim=-1)
    xBC = causal_conv1d(xBC, conv1d_weight, conv1d_bias, silu_name(activation), seq_idx=seq_idx)
    x, B, C = xBC.split([dim, *[(xBC.shape[-1] - dim) // 2] * 2], dim=-1)
    gate = z.unflatten(-1, (heads, headdim))
    y, *states = mamba_chunk_scan_combined(
        x.unflatten(-1, (heads, headdim)),
        dt,
        A,
        B.unflatten(-1, (ngroups, -1)),
        C.unflatten(-1, (ngroups, -1)),
        chunk_size,
        D,
        gate if rmsnorm_weight is None else None,
        dt_bias,
        initial_states,
        seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
    )
    out = y.flatten(2)
    if rmsnorm_weight is not None:
        out = _gated_norm(out, z, rmsnorm_weight, rmsnorm_eps, ngroups, norm_before_gate)
    if outproj_weight is not None:
        out = F.linear(out.to(outproj_weight.dtype), outproj_weight, outproj_bias)
    return (out, states[0]) if return_final_states else out


def _gated_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int, before_gate: bool) -> Tensor:
    """RMS norm of every group of channels of y (B, L, D), gated by silu(z) in front of it or behind."""
    dtype = compute_dtype(y, z, weight)
    wide, gate = y.to(dtype), F.silu(z.to(dtype))
    wide = wide if before_gate else wide * gate
    by_group = wide.unflatten(-1, (groups, -1))
    wide = F.rms_norm(by_group, by_group.shape[-1:], eps=eps).flatten(-2) * weight.to(dtype)
    return (wide * gate if before_gate else wide).to(y.dtype)
