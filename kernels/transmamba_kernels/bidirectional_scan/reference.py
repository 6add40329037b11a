"""Two reference scans, and how two branches become one gated output."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype
from ..packing import real_tokens, zero_padding
from ..selective_scan import reference
from ..ssd_scan.reference import step_size

# u, delta, A, B, C, D, delta_bias of one direction
Direction = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


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
    branches = []
    for (u, delta, A, B, C, D, bias), reverse in ((ahead, False), (back, True)):
        y, _ = reference.selective_scan(
            u, delta, A, B, C, D, None, bias, delta_softplus, None, None, False, reverse
        )
        branches.append(y)
    return merge(branches[0], branches[1], z, return_branches, lengths)


def without_padding(
    ahead: Direction, back: Direction, delta_softplus: bool, lengths: Tensor | None
) -> tuple[Direction, Direction, bool]:
    """The directions with their step sizes made where there is padding, 0 in it; what softplus is left."""
    if lengths is None:
        return ahead, back, delta_softplus

    real = real_tokens(ahead[0].shape[1], None, lengths)

    def stepped(direction: Direction) -> Direction:
        u, delta, A, B, C, D, bias = direction
        return u, step_size(delta, bias, delta_softplus, compute_dtype(*direction), real), A, B, C, D, None

    return stepped(ahead), stepped(back), False


def merge(
    y_f: Tensor, y_b: Tensor, z: Tensor | None, return_branches: bool, lengths: Tensor | None
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """The mean, gated; each branch is gated, before it is taken, only where the branches are wanted."""
    real = real_tokens(y_f.shape[1], None, lengths)
    y_f, y_b = zero_padding(y_f, real), zero_padding(y_b, real)
    gate = None if z is None else F.silu(z)
    if not return_branches:
        mean = (y_f + y_b) * 0.5
        return mean if gate is None else (mean * gate).to(y_f.dtype)
    if gate is not None:
        y_f, y_b = (y_f * gate).to(y_f.dtype), (y_b * gate).to(y_b.dtype)
    return (y_f + y_b) * 0.5, y_f, y_b
