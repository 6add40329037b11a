"""One masked matrix product for short sequences, two chunked scans for long ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import compute_dtype, without_autocast
from ..packing import real_tokens, segments, zero_padding
from ..ssd_scan import cpu
from ..ssd_scan.decay import two_way_decay
from ..ssd_scan.reference import step_size
from . import reference
from .reference import with_tokens


def by_scans(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    A_b: Tensor | None,
    delta_b: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_branches: bool,
    branch_tokens: Tensor | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `transmamba_kernels.bidirectional_ssd`; memory linear in L."""
    return reference.bidirectional_ssd(
        x,
        delta,
        A,
        B,
        C,
        A_b,
        delta_b,
        delta_bias,
        delta_softplus,
        return_branches,
        branch_tokens,
        seq_idx,
        lengths,
        scan=cpu.ssd_scan,
    )


def by_matrix(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    A_b: Tensor | None,
    delta_b: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_branches: bool,
    branch_tokens: Tensor | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `transmamba_kernels.bidirectional_ssd`; (B, H, L, L) matrices."""
    with without_autocast(x.device):
        dtype = compute_dtype(x, delta, A, B, C, A_b, delta_b, delta_bias)
        (length, heads), groups = x.shape[1:3], B.shape[2]
        real = real_tokens(length, seq_idx, lengths)
        dt = step_size(delta, delta_bias, delta_softplus, dtype, real).transpose(1, 2)
        dt_b = dt
        if delta_b is not None:
            dt_b = step_size(delta_b, delta_bias, delta_softplus, dtype, real).transpose(1, 2)
        values = x.to(dtype).transpose(1, 2)
        rate = A.to(dtype).unsqueeze(-1)
        rate_b = rate if A_b is None else A_b.to(dtype).unsqueeze(-1)
        ids = segments(seq_idx, lengths)
        decay = two_way_decay(dt * rate, dt_b * rate_b, None if ids is None else ids.unsqueeze(1), dtype)
        C = zero_padding(C, real)  # and with it the rows of all matrices below
        match = C.to(dtype).transpose(1, 2) @ B.to(dtype).permute(0, 2, 3, 1)  # (B, G, L, L)
        weights = match.unsqueeze(2) * decay.unflatten(1, (groups, heads // groups))
        weights = weights.flatten(1, 2)
        if return_branches and delta_b is None:
            # The halves differ in sign alone: + before the diagonal, - behind it, and nothing on it.
            steps = values * dt.unsqueeze(-1)
            y = whole = _by_token(weights @ steps, x)
            sides = _sides(length, weights)
            if branch_tokens is not None:
                y = whole.index_select(1, branch_tokens)
                weights, sides = weights.index_select(2, branch_tokens), sides[branch_tokens]
            half = _by_token((weights * sides) @ steps, x)
            return whole, y + half, y - half
        if return_branches:
            # Own terms stand once in 2 scan - own, all others twice.
            twice = weights.new_full((length, length), 2.0).tril_().fill_diagonal_(1.0)
            y_f = _by_token((weights * twice) @ (values * dt.unsqueeze(-1)), x)
            y_b = _by_token((weights * twice.T) @ (values * dt_b.unsqueeze(-1)), x)
            return with_tokens((y_f + y_b) * 0.5, y_f, y_b, branch_tokens)
        if delta_b is None:
            return _by_token(weights @ (values * dt.unsqueeze(-1)), x)
        share = weights.new_ones(length, length).tril_().fill_diagonal_(0.5)  # of the forward step size
        weights = weights * torch.addcmul(dt_b.unsqueeze(-2), (dt - dt_b).unsqueeze(-2), share)
        return _by_token(weights @ values, x)


def _sides(length: int, like: Tensor) -> Tensor:
    """(L, L): 1 below the diagonal, -1 above it, 0 on it."""
    ones = like.new_ones(length, length)
    return ones.tril(-1) - ones.triu(1)


def _by_token(y: Tensor, x: Tensor) -> Tensor:
    """(B, H, L, P) -> (B, L, H, P), in x's dtype."""
    return y.transpose(1, 2).to(x.dtype)
