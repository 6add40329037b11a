"""Tokens put between those of a row, taken out again afterwards: soft prompts, and their kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.output import Context

Where = Literal["prefix", "suffix", "infix", "both"]


@dataclass(frozen=True)
class Insertion:
    """source: for each place of the longer row what stands there: 0 to L - 1 are the row's own tokens, L to
        L + P - 1 those put in, L + P is nothing; (L',), or (B, L') where rows differ
    own:    where the row's own tokens stand, (L,) or (B, L)
    length: L, of the row itself
    tokens: P
    """

    source: Tensor
    own: Tensor
    length: int
    tokens: int

    @classmethod
    def fixed(cls, length: int, tokens: int, where: Where, device: torch.device) -> Insertion:
        """The same in every row: in front, behind, evenly spread, or half in front and half behind (of an odd
        number the one more in front)."""
        before = {
            "prefix": torch.zeros(tokens),
            "suffix": torch.full((tokens,), length),
            "infix": (torch.arange(tokens) + 1) * length // (tokens + 1),
            "both": (torch.arange(tokens) >= (tokens + 1) // 2) * length,
        }[where].long()  # of each token, how many of the row's own stand before it
        at = before + torch.arange(tokens)
        apart = torch.ones(length + tokens, dtype=torch.bool)
        apart[at] = False
        own = apart.nonzero().flatten()
        source = torch.empty(length + tokens, dtype=torch.long)
        source[at], source[own] = length + torch.arange(tokens), torch.arange(length)
        return cls(source.to(device), own.to(device), length, tokens)

    @classmethod
    def before(cls, length: int, tokens: int, context: Context, device: torch.device) -> Insertion:
        """In front of each document of a row, behind the padding before it: a row of a padded batch is the
        row alone. Rows of fewer documents than others end with places that hold nothing."""
        if context.segments is None and context.mask is None:
            return cls.fixed(length, tokens, "prefix", device)
        begins = _begins(context, device)
        rows, most = len(begins), int(begins.sum(dim=1).max())
        count = begins.long().cumsum(dim=1)
        own = torch.arange(length, device=device) + tokens * count
        source = torch.full((rows, length + tokens * most), length + tokens, device=device)
        source.scatter_(1, own, torch.arange(length, device=device).expand(rows, -1))
        row, start = begins.nonzero(as_tuple=True)
        ahead = torch.arange(tokens, device=device)
        source[row[:, None], (own[row, start] - tokens)[:, None] + ahead] = length + ahead
        return cls(source, own, length, tokens)

    def mirrored(self) -> Insertion:
        """For whoever reads rows from their end: what was put in is met in the same order. Of fixed ones."""
        row = torch.where(self.source < self.length, self.length - 1 - self.source, self.source)
        longer = self.length + self.tokens
        return Insertion(row.flip(0), (longer - 1 - self.own).flip(0), self.length, self.tokens)

    def place(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (B, L, D) with tokens (P, D) put in: (B, L', D)."""
        rows, width = len(x), x.shape[-1]
        put = tokens.to(x.dtype).expand(rows, -1, -1)
        if self.source.dim() == 1:
            return torch.cat([x, put], dim=1).index_select(1, self.source)
        longer = torch.cat([x, put, x.new_zeros(rows, 1, width)], dim=1)
        return longer.gather(1, self.source[:, :, None].expand(-1, -1, width))

    def drop(self, y: Tensor) -> Tensor:
        """Of y (B, L', ...) the row's own tokens: (B, L, ...)."""
        if self.own.dim() == 1:
            return y.index_select(1, self.own)
        at = self.own.view(*self.own.shape, *[1] * (y.dim() - 2))
        return y.gather(1, at.expand(-1, -1, *y.shape[2:]))

    def mask(self, mask: Tensor | None) -> Tensor | None:
        """Of a mask (B, L), that of the longer rows, in which what is put in is real."""
        if mask is None:
            return None
        ends = torch.cat([mask, mask.new_ones(len(mask), self.tokens), mask.new_zeros(len(mask), 1)], dim=1)
        return ends.gather(1, self.source.expand(len(mask), -1))

    def segments(self, segments: Tensor | None) -> Tensor | None:
        """Likewise of documents (B, L): what stands before one belongs to it."""
        if segments is None:
            return None
        # each place has the number of the row's own token that comes next; behind the last one, a new number
        after = torch.searchsorted(self.own.contiguous(), _counted(self.source))
        last = segments.amax(dim=1, keepdim=True) + 1
        return torch.cat([segments, last], dim=1).gather(1, after.expand(len(segments), -1))

    def context(self, context: Context) -> Context:
        """What layers read of the longer rows. Each document's tokens are counted from what is put in."""
        if context.mask is None and context.segments is None:
            return Context()
        longer = {"text_mask": self.mask(context.mask), "text_segment": self.segments(context.segments)}
        return Context.of(
            {name: part for name, part in longer.items() if part is not None} | {"text": self.source}
        )

    def positions(self, positions: Tensor, rows: int) -> Tensor:
        """Of positions (B or 1, L) those of the longer rows: what is put in counts from 0, and moves them."""
        ahead = torch.arange(self.tokens, device=positions.device).expand(rows, -1)
        moved = positions.expand(rows, -1) + self.tokens
        ends = torch.cat([moved, ahead, ahead.new_zeros(rows, 1)], dim=1)
        return ends.gather(1, self.source.expand(rows, -1))

    def places(self, tokens: Tensor | None) -> Tensor:
        """Where these of the row's own tokens, or all, stand in the longer row; of fixed ones alone."""
        assert self.own.dim() == 1, "rows differ"
        return self.own if tokens is None else self.own[tokens]


def _begins(context: Context, device: torch.device) -> Tensor:
    """(B, L), whether a document begins at a token; an empty row has one at its end."""
    if context.segments is not None:
        segments = context.segments
        begins = torch.ones_like(segments, dtype=torch.bool)
        begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
        return begins
    assert context.mask is not None
    real = context.mask.bool()
    first = torch.where(real.any(dim=1), real.long().argmax(dim=1), real.shape[1] - 1)
    return torch.arange(real.shape[1], device=device) == first[:, None]


def _counted(source: Tensor) -> Tensor:
    return torch.arange(source.shape[-1], device=source.device).expand(source.shape).contiguous()
