# SPDX-License-Identifier: Apache-2.0
"""Attention to near tokens, some tokens at a time and all of these beside each other: its work grows with a
text's length, where that of one mask over all pairs grows with its square.

Shapes: B rows (or 1 for all) of L tokens, in n blocks of C; K first tokens. A block reads K + window - 1 + C
tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# tokens of a block, C: wide enough for a kernel's tiles, and not much wider than windows are
BLOCK = 128
# tokens that are read at once behind others: under one mask, so no more; each portion launches every layer's
# operations anew, so no fewer
PORTION = 1024


@dataclass(frozen=True)
class Blocks:
    """first: (B, n, K) where the first tokens lie that a block's beginning may read
    allowed: (B, n, C, K + window - 1 + C), which of these and of those around it each token reads, or 0 where
        it does and -inf (`added`)
    """

    window: int
    first: Tensor
    allowed: Tensor

    @classmethod
    def of(
        cls,
        places: Tensor,
        window: int,
        sinks: int,
        real: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> "Blocks | None":
        """None of texts that are no longer than a window and a block.

        places: (B, L), each token's in its document; real: (B, L) bool, which are no padding; None for all
        segments: (B, L), which document of a packed row a token belongs to; None for one
        """
        length, before = places.shape[1], window - 1
        if length <= window + BLOCK:
            return None
        first = _first(places, sinks, real, segments)
        columns = torch.arange(length, device=places.device)[None]
        own = _blocks(columns, -1)[..., None]  # (1, n, C, 1)
        column = _read(columns, first, before, -1)
        # first tokens that lie around the block are read there
        once = torch.ones_like(column, dtype=torch.bool)
        once[..., : first.shape[2]] = first[:, :, None] < own[:, :, :1] - before
        near = (own - column < window) | (_read(places, first, before, sinks) < sinks)
        allowed = once & (column >= 0) & (column <= own) & near
        if segments is not None:
            mine = _blocks(segments, -1)[..., None]
            allowed = allowed & (mine == _read(segments, first, before, -1))
        if real is not None:
            allowed = allowed & _read(real, first, before, False)
        # a padded token reads itself, and so does what fills the last block: a softmax is over something
        return cls(window, first, allowed | (once & (column == own)) | (own < 0))

    def added(self, dtype: torch.dtype) -> "Blocks":
        """The same, for attention in this type: said once, and not anew by each layer's."""
        return Blocks(self.window, self.first, added(self.allowed, dtype))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attended: Callable[..., Tensor]) -> Tensor:
        """Softmax attention (B, H, L, P) of q over what is near, of k and v of as many heads or fewer.

        attended: attention of (q, k, v, which may be read)
        """
        length, before = q.shape[2], self.window - 1
        behind = -length % BLOCK
        first = self.first.expand(len(q), -1, -1).flatten(1)[:, None, :, None]

        def around(x: Tensor) -> Tensor:
            """(B n, G, K + window - 1 + C, P) of (B, G, L, P)"""
            near = F.pad(x, (0, 0, before, behind)).unfold(2, BLOCK + before, BLOCK).transpose(3, 4)
            far = x.gather(2, first.expand(-1, x.shape[1], -1, x.shape[3])).unflatten(2, self.first.shape[1:])
            return torch.cat([far, near], dim=3).transpose(1, 2).flatten(0, 1)

        asking = F.pad(q, (0, 0, 0, behind)).unflatten(2, (-1, BLOCK)).transpose(1, 2).flatten(0, 1)
        allowed = self.allowed.expand(len(q), -1, -1, -1).flatten(0, 1)[:, None]
        mixed = attended(asking, around(k), around(v), allowed).unflatten(0, (len(q), -1))
        return mixed.transpose(1, 2).flatten(2, 3)[:, :, :length]


def added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """What a softmax adds to its logits, (..., S): 0 where something may be read and -inf elsewhere. Its rows
    begin at multiples of 8 numbers, without which kernels of attention copy it."""
    more = -allowed.shape[-1] % 8
    mask = torch.zeros(*allowed.shape[:-1], allowed.shape[-1] + more, dtype=dtype, device=allowed.device)
    return mask[..., : allowed.shape[-1]].masked_fill_(~allowed, -torch.inf)


def portions(tokens: int) -> list[slice]:
    """At most `PORTION` tokens each."""
    return [slice(start, start + PORTION) for start in range(0, tokens, PORTION)]


def _first(places: Tensor, sinks: int, real: Tensor | None, segments: Tensor | None) -> Tensor:
    """(B, n, K): the first tokens of the document that each block begins in."""
    length = places.shape[1]
    number = torch.arange(sinks, device=places.device)
    if segments is not None:
        begins = torch.arange(0, length, BLOCK, device=places.device)
        at = (begins - places[:, ::BLOCK])[..., None] + number
        return at.clamp(0, length - 1)
    found = places[:, None] == number[:, None]  # (B, K, L)
    if real is not None:
        found = found & real[:, None]
    # of a text with fewer tokens the last column instead, which is far from none
    at = torch.where(found.any(dim=-1), found.long().argmax(dim=-1), length - 1)
    return at[:, None].expand(-1, -(-length // BLOCK), -1)


def _blocks(x: Tensor, filled: int) -> Tensor:
    """(B, n, C) of (B, L), the last filled up."""
    return F.pad(x, (0, -x.shape[1] % BLOCK), value=filled).unflatten(1, (-1, BLOCK))


def _read(x: Tensor, first: Tensor, before: int, filled: int) -> Tensor:
    """(B, n, 1, K + before + C) of (B, L): of the first tokens, and of a block and what lies before it."""
    near = F.pad(x, (before, -x.shape[1] % BLOCK), value=filled).unfold(1, BLOCK + before, BLOCK)
    rows = max(len(x), len(first))
    far = x.expand(rows, -1).gather(1, first.expand(rows, -1, -1).flatten(1)).unflatten(1, first.shape[1:])
    return torch.cat([far, near.expand(rows, -1, -1)], dim=-1)[:, :, None]
