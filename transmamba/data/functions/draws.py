"""Random numbers of many rows at once, on whatever device, each a function of its coordinates alone.

The number at place j of stream s of a row is `data.hashing.hash64(*keys of the row, s, j)`: no generator, so
that neither the device nor who makes a batch changes it (but for the last bits of logarithm and cosine), nor
how a step is divided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


def _signed(constant: int) -> int:
    """The same 64 bits as torch's int64 has them."""
    return constant - (1 << 64) if constant >> 63 else constant


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)
_BITS = 23  # so many make a number that float32 holds half a step off 0 and 1


def _shifted(x: Tensor, by: int) -> Tensor:
    """x >> by without its sign, of int64."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's, as in `data.hashing`; int64 wraps around."""
    state = state + _GOLDEN
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


class RowDraws:
    """Of B rows.

    keys: (B,) int64 each, which together name a row
    """

    def __init__(self, keys: Sequence[Tensor]) -> None:
        self.keys = keys

    @cached_property
    def state(self) -> Tensor:
        """(B,) int64; most functions draw nothing that rows share, and then it is never made."""
        state = torch.zeros_like(self.keys[0])
        for key in self.keys:
            state = _mix(state ^ key)
        return state

    def __len__(self) -> int:
        return len(self.keys[0])

    def bits(self, stream: int, *shape: int) -> Tensor:
        """(B, *shape) int64, all of whose bits are random."""
        places = torch.arange(math.prod(shape), device=self.state.device)
        return _mix(_mix(self.state ^ stream)[:, None] ^ places).unflatten(1, shape or (1,))

    def uniform(self, stream: int, *shape: int) -> Tensor:
        """(B, *shape) float32 in (0, 1), without its ends."""
        return _uniform(_shifted(self.bits(stream, *shape), 64 - _BITS))

    def normal(self, stream: int, *shape: int) -> Tensor:
        """(B, *shape) float32 of mean 0 and variance 1: Box and Muller, "A note on the generation of random
        normal deviates", 1958, both of its numbers out of the same 64 bits."""
        bits = self.bits(stream, *shape)
        first = _uniform(_shifted(bits, 64 - _BITS))
        second = _uniform((bits >> (64 - 2 * _BITS)) & ((1 << _BITS) - 1))
        return (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()

    def signs(self, stream: int, *shape: int) -> Tensor:
        """(B, *shape) float32, 1 or -1."""
        return 1.0 - 2.0 * (self.bits(stream, *shape) < 0)

    def below(self, stream: int, bound: Tensor | int, *shape: int) -> Tensor:
        """(B, *shape) int64, evenly from 0 .. bound - 1; bound below 2^31, a number or one of each row
        (B,)."""
        if isinstance(bound, Tensor):
            bound = bound.reshape(-1, *(1 for _ in shape))
        return _shifted(_shifted(self.bits(stream, *shape), 32) * bound, 32)

    def order(self, stream: int, count: int) -> Tensor:
        """(B, count) int64: a permutation of 0 .. count - 1 for each row."""
        return _shifted(self.bits(stream, count), 1).argsort(dim=1)

    def subset(self, stream: int, count: int, bound: Tensor, most: int) -> Tensor:
        """(B, count) int64: different numbers of 0 .. bound - 1, bound (B,), at most `most`."""
        scores = _shifted(self.bits(stream, most), 1)
        places = torch.arange(most, device=scores.device)
        return torch.where(places < bound[:, None], scores, torch.iinfo(torch.int64).max).argsort(1)[
            :, :count
        ]


def _uniform(bits: Tensor) -> Tensor:
    return (bits.float() + 0.5) * 2.0**-_BITS
