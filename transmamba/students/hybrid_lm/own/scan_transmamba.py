# SPDX-License-Identifier: Apache-2.0
"""What all layers share, and the scan of Mamba-2 (arXiv 2405.21060). Shapes: B rows, T new tokens, H heads of
P channels and N states."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks_transmamba import Blocks
from .cache_transmamba import HybridCache

CHUNK = 128


@dataclass
class Pass:
    """What the layers of one forward pass share.

    real, places: (B, T) which tokens are no padding, and their places in their texts, -1 for padding
    cos, sin:     (B, 1, T, P) of those places
    cache:        what is remembered; None where nothing is
    plain:        whether no row has padding and nothing was read before
    joined:       whether nothing was read before, and no row has padding between its tokens
    blocks:       how windows are read then, of a long text
    """

    real: Tensor
    places: Tensor
    cos: Tensor
    sin: Tensor
    cache: HybridCache | None
    plain: bool
    joined: bool
    blocks: Blocks | None


def wide(x: Tensor) -> Tensor:
    """In float32, or wider where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def scan(
    x: Tensor, step: Tensor, rate: Tensor, B: Tensor, C: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y_t = S_t C_t with S_t = exp(step_t rate) S_(t-1) + step_t x_t B_tᵀ, and the last S (B, H, P, N), some
    tokens at a time: within them as attention without softmax, between them by the state (arXiv 2405.21060,
    section 6).

    x (B, T, H, P), step (B, T, H), rate (H), B and C (B, T, H, N), state (B, H, P, N) or None for zeros
    """
    x = (x * step[..., None]).transpose(1, 2)
    decay, B, C = (step * rate).transpose(1, 2), B.transpose(1, 2), C.transpose(1, 2)
    if state is None:
        state = x.new_zeros(*x.shape[:2], x.shape[-1], B.shape[-1])
    made = []
    for at in range(0, x.shape[2], CHUNK):
        u, b, c = (part[:, :, at : at + CHUNK] for part in (x, B, C))
        sums = decay[:, :, at : at + CHUNK].cumsum(dim=-1)
        later = torch.ones(u.shape[2], u.shape[2], dtype=torch.bool, device=x.device).triu(1)
        between = (sums[..., :, None] - sums[..., None, :]).masked_fill(later, -torch.inf).exp()
        within = (c @ b.mT * between) @ u
        made.append(within + sums.exp()[..., None] * (c @ state.mT))
        left = (sums[..., -1:] - sums).exp()[..., None]
        state = sums[..., -1].exp()[..., None, None] * state + (u * left).mT @ b
    return torch.cat(made, dim=2).transpose(1, 2), state
