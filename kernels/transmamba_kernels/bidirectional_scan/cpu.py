"""Both directions at once where calls cost more than arithmetic, else one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from ..selective_scan import cpu
from .reference import Direction, merge, without_padding

# A CPU joins the directions below so many elements of one step's states: half the calls, for some copies.
FEW = 1 << 14


def bidirectional_scan(
    ahead: Direction,
    back: Direction,
    z: Tensor | None,
    delta_softplus: bool,
    return_branches: bool,
    lengths: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """The merged output (B, L, D), or (merged, forward, backward)."""
    ahead, back, delta_softplus = without_padding(ahead, back, delta_softplus, lengths)
    u, A = ahead[0], ahead[2]
    if u.device.type != "cpu" or u.shape[0] * A.numel() < FEW:
        y_f, y_b = _together(ahead, back, delta_softplus)
    else:
        y_f, y_b = _scan(ahead, delta_softplus, False), _scan(back, delta_softplus, True)
    return merge(y_f, y_b, z, return_branches, lengths)


def _scan(direction: Direction, delta_softplus: bool, reverse: bool) -> Tensor:
    u, delta, A, B, C, D, bias = direction
    return cpu.selective_scan(u, delta, A, B, C, D, None, bias, delta_softplus, None, None, False, reverse)[0]


def _together(ahead: Direction, back: Direction, delta_softplus: bool) -> tuple[Tensor, Tensor]:
    """One forward scan over 2D channels, the second half of them turned round in time."""
    u, delta, A, B, C, D, bias = ahead
    u_b, delta_b, A_b, B_b, C_b, D_b, bias_b = back
    channels = u.shape[2]
    both = (
        torch.cat([u, u_b.flip(1)], dim=2),
        torch.cat([delta, delta_b.flip(1)], dim=2),
        torch.cat([A, A_b]),
        torch.cat([_grouped(B), _grouped(B_b).flip(1)], dim=2),
        torch.cat([_grouped(C), _grouped(C_b).flip(1)], dim=2),
        _joined(D, D_b, u),
        _joined(bias, bias_b, u),
    )
    y = _scan(both, delta_softplus, False)
    return y[..., :channels], y[..., channels:].flip(1)


def _grouped(matrix: Tensor) -> Tensor:
    return matrix if matrix.dim() == 4 else matrix.unsqueeze(2)


def _joined(one: Tensor | None, other: Tensor | None, u: Tensor) -> Tensor | None:
    """(2D,), zeros for the direction that has none."""
    if one is None and other is None:
        return None
    none = u.new_zeros(u.shape[2], dtype=one.dtype if one is not None else None)
    return torch.cat([none if one is None else one, none if other is None else other])
