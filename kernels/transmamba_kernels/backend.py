"""Which implementation of an operator runs, and the arithmetic type that all of them share."""

from __future__ import annotations

import functools
import logging
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

VARIABLE = "TRANSMAMBA_KERNELS"
PATHS = ("reference", "cpu")

logger = logging.getLogger("transmamba_kernels")


def choose(op: str, tensor: Tensor) -> str:
    """The path (one of `PATHS`) that operator `op` takes for inputs like `tensor`; logged once a path and
    device.

    Raises ValueError where the environment variable names no path.
    """
    forced = os.environ.get(VARIABLE, "")
    if not forced:
        _say(op, "cpu", tensor.device.type, "the fast PyTorch path, the best there is for this device")
        return "cpu"
    if forced not in PATHS:
        raise ValueError(f"{VARIABLE}={forced!r} names no path; write one of {', '.join(PATHS)}, or unset it")
    _say(op, forced, tensor.device.type, f"forced by {VARIABLE}={forced}")
    return forced


@functools.cache
def _say(op: str, path: str, device: str, reason: str) -> None:
    logger.info("%s on %s: path %r (%s)", op, device, path, reason)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is float64, else float32: state dynamics are never run in half precision."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keeps autocast from sending the matrix products inside a scan to half precision."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
