# SPDX-License-Identifier: Apache-2.0
"""What all layers share, and the scan of Mamba-2 (arXiv 2405.21060). Shapes: B rows, T new tokens, G states
of P channels and N numbers, R heads that read each."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks_transmamba import Blocks
from .cache_transmamba import HybridCache, Known

# tokens of a chunk, and of the chunks that are read beside each other
CHUNK, SPAN = 128, 4096


@dataclass
class Pass:
    """What the layers of one forward pass share.

    real, places: (B, T) which tokens are no padding, and their places in their texts, -1 for padding
    cos, sin:     (B, 1, T, P) of those places, in the stream's type, the first half of sin negated
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
    _kinds: dict[tuple[int | None, int], Known] = field(default_factory=dict)

    def known(self, last: int | None, sinks: int) -> Known:
        """What all layers that remember so many tokens know, found by the first of them."""
        kind = (last, sinks)
        if kind not in self._kinds:
            self._kinds[kind] = (
                Known(self.places) if self.cache is None else self.cache.begin(self.places, last, sinks)
            )
        return self._kinds[kind]


def wide(x: Tensor) -> Tensor:
    """In float32, or wider where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def scan(
    x: Tensor, step: Tensor, rate: Tensor, B: Tensor, C: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y_t = S_t C_t with S_t = exp(step_t rate) S_(t-1) + step_t x_t B_tᵀ, (B, G, R, T, P), and the last S
    (B, G, P, N).

    x (B, G, T, P), step (B, G, T), rate (G), B (B, G, T, N), C (B, G, R, T, N), state (B, G, P, N) or None
    for zeros; all in their own precision, whatever autocast says
    """
    with torch.autocast(x.device.type, enabled=False):
        return _scan(x, step, rate, B, C, state)


def scan_by_token(
    x: Tensor, step: Tensor, rate: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same of tensors whose tokens come before their heads, each with a state of its own: y like x
    (B, T, H, P), step (B, T, H), B and C (B, T, H, N)."""
    x, step, B, C = (part.transpose(1, 2) for part in (x, step, B, C))
    y, state = scan(x, step, rate, B, C[:, :, None], state)
    return y.squeeze(2).transpose(1, 2), state


def _scan(
    x: Tensor, step: Tensor, rate: Tensor, B: Tensor, C: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    x, decay = x * step[..., None], step * rate[:, None]
    if state is None:
        state = x.new_zeros(*x.shape[:2], x.shape[-1], B.shape[-1])
    if x.shape[2] == 1:
        kept = (state * decay[..., None].exp()).flatten(0, 1)
        state = torch.baddbmm(kept, x.mT.flatten(0, 1), B.flatten(0, 1)).view_as(state)
        return (C.squeeze(3) @ state.mT).unsqueeze(3), state
    made = []
    for at in range(0, x.shape[2], SPAN):
        parts = [part[..., at : at + SPAN, :] for part in (x, B, C, decay[..., None])]
        y, state = _span(parts[0], parts[1], parts[2], parts[3], state)
        made.append(y)
    return torch.cat(made, dim=3), state


def _span(x: Tensor, B: Tensor, C: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """K chunks of Q tokens beside each other: within them as attention without softmax, between them by
    states (arXiv 2405.21060, section 6). decay (B, G, T, 1), in logarithms."""
    tokens = x.shape[2]
    size = min(CHUNK, tokens)
    # what fills the last chunk adds nothing and keeps the state
    x, B, C, decay = (
        F.pad(part, (0, 0, 0, -tokens % size)).unflatten(-2, (-1, size)) for part in (x, B, C, decay)
    )
    sums = decay.squeeze(-1).cumsum(dim=-1)  # (B, G, K, Q)
    between = (sums[..., :, None] - sums[..., None, :]).masked_fill(_above(sums, 1), -torch.inf).exp()
    y = (C @ B.mT[:, :, None] * between[:, :, None]) @ x[:, :, None]
    total = sums[..., -1]
    added = ((x * (total[..., None] - sums).exp()[..., None]).mT @ B).flatten(-2)  # (B, G, K, P N)
    # by how much what chunk j has added decays until the end of chunk i, (B, G, i, j): added up, for a
    # difference of long sums would be all rounding
    faded = total[..., None].expand(*total.shape, total.shape[-1]).masked_fill(_above(total, 0), 0)
    faded = faded.cumsum(dim=-2).masked_fill(_above(total, 1), -torch.inf).exp()
    first = total.cumsum(dim=-1).exp()[..., None] * state.flatten(-2)[:, :, None]
    behind = (faded @ added + first).unflatten(-1, state.shape[-2:])
    before = torch.cat([state[:, :, None], behind[:, :, :-1]], dim=2)[:, :, None]
    y = y + sums.exp()[:, :, None, ..., None] * (C @ before.mT)
    return y.flatten(3, 4)[..., :tokens, :], behind[:, :, -1]


def _above(x: Tensor, diagonal: int) -> Tensor:
    """(n, n) of x (..., n), whether a column lies so far behind its row, or farther."""
    return torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).triu(diagonal)
