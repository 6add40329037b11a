"""What a hybrid's layers read of a pass beside its stream: positions, who may read whom, and who is near.

Shapes: B rows (or 1 for all), L tokens, P channels a head.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...core.output import Context
from ...views.rope import Rope
from ...views.sublayers import attend, readable
from .own.blocks_transmamba import Blocks


@dataclass(frozen=True)
class Nearby:
    """A token's last `window` tokens, itself included, and the first `sinks` of its document.

    places: (B, L), each token's in its document
    left:   (B, L) bool, whether the token `window` before this one has just left its window: a real one of
        the same document, and no sink
    blocks: how texts that are longer than a window and a block are read; None of shorter ones
    """

    context: Context
    window: int
    sinks: int
    places: Tensor
    left: Tensor
    blocks: Blocks | None

    @classmethod
    def of(cls, context: Context, places: Tensor, window: int, sinks: int) -> Nearby:
        blocks = Blocks.of(places, window, sinks, context.mask, context.segments)
        return cls(context, window, sinks, places, _left(context, places, window, sinks), blocks)

    @functools.cached_property
    def allowed(self) -> Tensor | None:
        """(B, 1, L, L) bool, whether a token may read another that is near; None where causality alone says
        so. Made for whoever asks first: blocks do without."""
        return _near(readable(self.context, True, None, self.places), self.places, self.window, self.sinks)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention (B, H, L, P) of q over what is near, of k and v of as many heads or fewer."""
        if self.blocks is None:
            return attend(q, k, v, self.allowed)
        blocks, dtype = self.blocks, v.dtype  # norms leave q and k wider under autocast
        key = "near", self.window, self.sinks, dtype
        return self.context.once(key, lambda: blocks.added(dtype)).attend(q, k, v, attend)


@dataclass(frozen=True)
class Reading:
    """What all layers read beside the stream, made once a pass.

    waves:  cosine and sine of the tokens' positions, each (B, 1, L, P); None where no layer has attention
    places: (B, L), each token's in its document; None alike
    nearby: by its length, each window that layers read through
    """

    context: Context
    waves: tuple[Tensor, Tensor] | None = None
    places: Tensor | None = None
    nearby: Mapping[int, Nearby] = field(default_factory=dict)

    @classmethod
    def of(
        cls, context: Context, x: Tensor, rope: Rope, windows: Collection[int] = (), sinks: int = 0
    ) -> Reading:
        """Of a stream x (B, L, D)."""
        places = context.positions
        if places is None:
            places = torch.arange(x.shape[1], device=x.device)[None]
        nearby = {window: Nearby.of(context, places, window, sinks) for window in windows}
        return cls(context, rope.waves(places), places, nearby)

    @functools.cached_property
    def allowed(self) -> Tensor | None:
        """(B, 1, L, L) bool, whether a token may read another; None where causality alone says so. Made for
        the first layer that reads everything."""
        assert self.places is not None, "asked by layers of attention"
        return readable(self.context, True, None, self.places)


def _near(allowed: Tensor | None, places: Tensor, window: int, sinks: int) -> Tensor | None:
    length = places.shape[1]
    if window >= length:
        return allowed
    every = torch.ones(length, length, dtype=torch.bool, device=places.device)
    near = every.triu(1 - window) | (places < sinks)[:, None, None, :]
    return near & (every.tril() if allowed is None else allowed)


def _left(context: Context, places: Tensor, window: int, sinks: int) -> Tensor:
    here, before = places[:, window:], places[:, :-window]
    left = (here - before == window) & (before >= sinks)
    if context.segments is not None:
        left = left & (context.segments[:, window:] == context.segments[:, :-window])
    if context.mask is not None:
        left = left & context.mask[:, window:] & context.mask[:, :-window]
    first = left.new_zeros(len(left), min(window, places.shape[1]))
    return torch.cat([first, left], dim=1)
