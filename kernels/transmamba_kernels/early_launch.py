# mypy: ignore-errors
"""Kernels whose programs start while the kernel in front of theirs still runs, and wait there.

That is CUDA's programmatic dependent launch, of Hopper and newer: a kernel's launch takes longer than the
small ones of a token run, and what nobody writes can be on its way to L2 meanwhile.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .backend import capability, interpreted


@triton.jit
def begin(EARLY: tl.constexpr):
    """Before a kernel that was launched by `overlaps` reads or writes anything: waits until all kernels in
    front of it are through, and lets the next one begin to wait.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def fetch(pointers, EARLY: tl.constexpr):
    """Moves the lines under these pointers on their way to L2, in front of `begin`. What the kernels before
    still write there comes out right all the same: L2 is where they write it.
    """
    if EARLY:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
            "=r,l",
            [pointers.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


# The GPUs that start a kernel's programs before the kernel in front has ended (Hopper).
_HOPPER = 9


def overlaps(tensor: Tensor) -> dict[str, Any]:
    """For the launch of a kernel that calls `begin`: whether it is launched while the one in front of it
    still runs (CUDA's programmatic dependent launch), and waits there.
    """
    early = tensor.is_cuda and not interpreted() and capability(tensor.device.index)[0] >= _HOPPER
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
