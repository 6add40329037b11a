"""Tokens put between those of a row, taken out again afterwards: soft prompts, and their kind."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..core.output import Context, begins_of

Where = Literal["prefix", "suffix", "infix", "both"]


@dataclass(frozen=True, kw_only=True)
class Insertion:
    """length: L, of the row itself
    tokens: P
    device: of what is put in
    runs:   what stands in the longer row, where it is the same in every row, as slices of the row's own
        tokens (0 to L) and of those put in (L to L + P), one after the other: copied without indices, whose
        gradients would be summed up place by place
    rows:   else `source` (B, L') and `own` (B, L)
    """

    length: int
    tokens: int
    device: torch.device
    runs: tuple[tuple[int, int], ...] = ()
    rows: tuple[Tensor, Tensor] | None = None

    @functools.cached_property
    def source(self) -> Tensor:
        """For each place of the longer row what stands there: 0 to L - 1 are the row's own tokens, L to
        L + P - 1 those put in, L + P is nothing; (L',), or (B, L') where rows differ."""
        if self.rows is not None:
            return self.rows[0]
        return torch.cat([torch.arange(start, stop, device=self.device) for start, stop in self.runs])

    @functools.cached_property
    def own(self) -> Tensor:
        """Where the row's own tokens stand, (L,) or (B, L)."""
        if self.rows is not None:
            return self.rows[1]
        at, found = 0, [torch.arange(0, device=self.device)]
        for start, stop in self.runs:
            if start < self.length:
                found.append(torch.arange(at, at + stop - start, device=self.device))
            at += stop - start
        return torch.cat(found)

    @classmethod
    def fixed(cls, length: int, tokens: int, where: Where, device: torch.device) -> Insertion:
        """The same in every row: in front, behind, evenly spread, or half in front and half behind (of an odd
        number the one more in front)."""
        return cls(length=length, tokens=tokens, device=device, runs=_runs(length, tokens, where))

    @classmethod
    def before(cls, length: int, tokens: int, context: Context, device: torch.device) -> Insertion:
        """In front of each document of a row, behind the padding before it: a row of a padded batch is the
        row alone. Rows of fewer documents than others end with places that hold nothing."""
        if context.segments is None:
            if context.mask is None:
                return cls.fixed(length, tokens, "prefix", device)
            return cls._behind_padding(tokens, context.mask)
        begins = begins_of(context.segments)
        rows, most = len(begins), int(begins.sum(dim=1).max())
        count = begins.long().cumsum(dim=1)
        own = torch.arange(length, device=device) + tokens * count
        source = torch.full((rows, length + tokens * most), length + tokens, device=device)
        source.scatter_(1, own, torch.arange(length, device=device).expand(rows, -1))
        row, start = begins.nonzero(as_tuple=True)
        ahead = torch.arange(tokens, device=device)
        source[row[:, None], (own[row, start] - tokens)[:, None] + ahead] = length + ahead
        return cls(length=length, tokens=tokens, device=device, rows=(source, own))

    @classmethod
    def _behind_padding(cls, tokens: int, mask: Tensor) -> Insertion:
        """In front of each row's first real token, and of the last where none is: without waiting for the
        device to say where."""
        real, length = mask.bool(), mask.shape[1]
        first = torch.where(real.any(dim=1), real.long().argmax(dim=1), length - 1)[:, None]
        place = torch.arange(length + tokens, device=mask.device)
        put = length + place - first
        source = torch.where(place < first, place, torch.where(place < first + tokens, put, place - tokens))
        own = place[:length]
        places = source, torch.where(own < first, own, own + tokens)
        return cls(length=length, tokens=tokens, device=mask.device, rows=places)

    def mirrored(self) -> Insertion:
        """For whoever reads rows from their end: what was put in is met in the same order. Of fixed ones."""
        assert self.rows is None, "rows differ"
        runs: list[tuple[int, int]] = []
        for start, stop in reversed(self.runs):
            if start < self.length:
                runs.append((self.length - stop, self.length - start))
            else:
                runs += [(token, token + 1) for token in reversed(range(start, stop))]
        return replace(self, runs=tuple(runs))

    def place(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (B, L, D) with tokens (P, D) put in: (B, L', D)."""
        rows, width = len(x), x.shape[-1]
        put = tokens.to(x.dtype).expand(rows, -1, -1)
        if self.rows is None:
            at = self.length
            return torch.cat([x[:, a:b] if a < at else put[:, a - at : b - at] for a, b in self.runs], dim=1)
        longer = torch.cat([x, put, x.new_zeros(rows, 1, width)], dim=1)
        return longer.gather(1, self.source[:, :, None].expand(-1, -1, width))

    def drop(self, y: Tensor) -> Tensor:
        """Of y (B, L', ...) the row's own tokens: (B, L, ...)."""
        if self.rows is None:
            parts = y.split([stop - start for start, stop in self.runs], dim=1)
            own = [part for part, (start, _) in zip(parts, self.runs, strict=True) if start < self.length]
            return own[0] if len(own) == 1 else torch.cat([y[:, :0], *own], dim=1)
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


def _runs(length: int, tokens: int, where: Where) -> tuple[tuple[int, int], ...]:
    before = {
        "prefix": [0] * tokens,
        "suffix": [length] * tokens,
        "infix": [(i + 1) * length // (tokens + 1) for i in range(tokens)],
        "both": [length * (i >= (tokens + 1) // 2) for i in range(tokens)],
    }[where]  # of each token, how many of the row's own stand before it
    runs, at = [], 0
    for place, together in itertools.groupby(range(tokens), before.__getitem__):
        first, *others = together
        runs += [(at, place)] * (place > at) + [(length + first, length + first + len(others) + 1)]
        at = place
    return (*runs, (at, length)) if at < length else tuple(runs)


def _counted(source: Tensor) -> Tensor:
    return torch.arange(source.shape[-1], device=source.device).expand(source.shape).contiguous()
