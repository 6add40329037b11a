"""Which implementation of an operator runs, and the arithmetic type that all of them share."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

VARIABLE = "TRANSMAMBA_KERNELS"
PATHS = ("reference", "cpu", "triton")
# The oldest GPUs whose bfloat16 Triton's kernels can use (Ampere).
CAPABILITY = (8, 0)

logger = logging.getLogger("transmamba_kernels")


def choose(op: str, *tensors: Tensor | None) -> str:
    """The path (one of `PATHS`) that operator `op` takes for these inputs; said once a path, device, reason.

    Raises ValueError where the environment variable names no path, or forces one that cannot run here.
    """
    device = next(x.device for x in tensors if x is not None)
    forced = os.environ.get(VARIABLE, "")
    if not forced:
        if device.type != "cuda":
            _say(op, "cpu", device.type, "the fast PyTorch path, the best there is for this device")
            return "cpu"
        obstacle = _obstacle(device, *tensors)
        if obstacle is None:
            _say(op, "triton", device.type, "Triton kernels")
            return "triton"
        _warn(op, "cpu", device.type, f"the PyTorch path, since {obstacle}")
        return "cpu"
    if forced not in PATHS:
        raise ValueError(f"{VARIABLE}={forced!r} names no path; write one of {', '.join(PATHS)}, or unset it")
    if forced == "triton":
        obstacle = _obstacle(device, *tensors)
        if obstacle is not None:
            raise ValueError(f"{VARIABLE}=triton cannot run {op}: {obstacle}; write cpu, or unset it")
    _say(op, forced, device.type, f"forced by {VARIABLE}={forced}")
    return forced


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _obstacle(device: torch.device, *tensors: Tensor | None) -> str | None:
    """Why Triton's kernels cannot take these inputs; None where they can."""
    if not _has_triton():
        return "triton is not installed"
    if any(x is not None and x.dtype == torch.float64 for x in tensors):
        return "an input is float64, and the Triton kernels compute in float32"
    if device.type != "cuda":
        return None if interpreted() else f"the inputs are on {device.type}, Triton needs a CUDA device"
    found = _capability(device.index if device.index is not None else torch.cuda.current_device())
    return None if found >= CAPABILITY else f"compute capability {found[0]}.{found[1]} is below 8.0"


# Plain look-ups, which torch.compile can trace: it cannot trace functools.cache, find_spec or a logger.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_capabilities: dict[int, tuple[int, int]] = {}


def _has_triton() -> bool:
    return _HAS_TRITON


def _capability(index: int) -> tuple[int, int]:
    if index not in _capabilities:
        properties = torch.cuda.get_device_properties(index)
        _capabilities[index] = (properties.major, properties.minor)
    return _capabilities[index]


def _say(op: str, path: str, device: str, reason: str) -> None:
    if not torch.compiler.is_compiling():
        _log(logging.INFO, op, path, device, reason)


def _warn(op: str, path: str, device: str, reason: str) -> None:
    if not torch.compiler.is_compiling():
        _log(logging.WARNING, op, path, device, reason)


@functools.cache
def _log(level: int, op: str, path: str, device: str, reason: str) -> None:
    logger.log(level, "%s on %s: path %r (%s)", op, device, path, reason)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is float64, else float32: state dynamics are never run in half precision."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keeps autocast from sending the matrix products inside a scan to half precision."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
