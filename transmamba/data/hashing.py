"""Randomness as a function of its coordinates: no generator, hence no state to save and nothing to resume.

The number for (seed, epoch, index) is the same on every rank, in every worker and on every machine and numpy
version. The mixing function is SplitMix64's (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Key = int | npt.NDArray[np.int64] | npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def hash64(*keys: Key) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of the keys in order, each an integer or an (N,) array: (N,), or (1,) without one."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _mix(state ^ _unsigned(key))
    return state


def permutation(size: int, *keys: int) -> npt.NDArray[np.int64]:
    """A permutation of range(size) that the keys determine."""
    order = np.argsort(hash64(*keys, np.arange(size)), kind="stable")
    return order.astype(np.int64, copy=False)


def _unsigned(key: Key) -> npt.NDArray[np.uint64]:
    if isinstance(key, np.ndarray):
        return key.astype(np.uint64)
    return np.array([int(key) & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
