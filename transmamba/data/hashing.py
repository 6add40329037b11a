"""Randomness as a function of its coordinates: no generator, hence no state to save and nothing to resume.

The number for (seed, epoch, index) is the same on every rank, in every worker and on every machine and numpy
version. The mixing function is SplitMix64's (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Key = int | npt.NDArray[np.int64] | npt.NDArray[np.uint64]

_STEP = 0x9E3779B97F4A7C15
_GOLDEN = np.uint64(_STEP)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_MASK = 0xFFFFFFFFFFFFFFFF
# so many seeds there are: what is made of one for a step, a rank or a stage must not overflow either
SEEDS = 1 << 32


def hash64(*keys: Key) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of the keys in order, each an integer or an (N,) array: (N,), or (1,) without one."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _mix(state ^ _unsigned(key))
    return state


def hash_of(*keys: int) -> int:
    """`hash64` of single integers, in plain ones: a tenth of the time of numpy's."""
    state = 0
    for key in keys:
        state = _mixed(((state ^ key) + _STEP) & _MASK)
    return state


def permutation(size: int, *keys: int) -> npt.NDArray[np.int64]:
    """A permutation of range(size) that the keys determine."""
    order = np.argsort(hash64(*keys, np.arange(size)), kind="stable")
    return order.astype(np.int64, copy=False)


def seed_problems(name: str, seed: int) -> list[str]:
    """What is wrong with a seed: torch and numpy have generators for these alone."""
    if 0 <= seed < SEEDS:
        return []
    return [f"{name} is {seed}; write a whole number from 0 to {SEEDS - 1}"]


class Draws:
    """A sequence of random numbers that `seed` determines: SplitMix64's own, one object for each item.

    Nothing is shared, so that neither the order in which items are made nor another thread matters; plain
    integers, because an item draws a dozen numbers and making a generator of numpy's costs more than that.
    """

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def bits(self) -> int:
        """64 random bits."""
        self._state = (self._state + _STEP) & _MASK
        return _mixed(self._state)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Evenly from [low, high)."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def below(self, bound: int) -> int:
        """Evenly from 0 .. bound - 1."""
        return (self.bits() * bound) >> 64

    def normal(self, mean: float, std: float) -> float:
        """Box and Muller, "A note on the generation of random normal deviates", 1958."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.uniform()))
        return mean + std * radius * math.cos(2.0 * math.pi * self.uniform())


def _mixed(state: int) -> int:
    """SplitMix64's finaliser, of 64 bits as a plain integer."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def _unsigned(key: Key) -> npt.NDArray[np.uint64]:
    if isinstance(key, np.ndarray):
        return key.astype(np.uint64)
    return np.array([int(key) & _MASK], dtype=np.uint64)


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
