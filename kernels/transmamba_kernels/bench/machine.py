"""What the machine can do at most: copy bandwidth and exponentials a second, both measured."""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

import torch

from .timing import Timer


def describe(device: torch.device) -> dict[str, Any]:
    """Names and versions, `copy_gb_per_s` (bytes read and written) and `exp2_per_ns`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    found: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "copy_gb_per_s": copy_bandwidth(device),
        "exp2_per_ns": exp2_rate(device),
    }
    if importlib.util.find_spec("triton") is not None:
        import triton

        found["triton"] = triton.__version__
    return found


def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a copy far beyond the caches."""
    size = 2**31 if device.type == "cuda" else 2**27
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = Timer(device).median(lambda: target.copy_(source), 20)
    return 2 * size / seconds / 1e9


def exp2_rate(device: torch.device) -> float:
    """exp2 a nanosecond, all of the device busy with nothing else."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from .exp2_loop import BLOCK, STEPS, exp2_kernel

        programs = 16 * torch.cuda.get_device_properties(device).multi_processor_count
        out = torch.zeros(programs * BLOCK, device=device)
        seconds = Timer(device).median(
            lambda: exp2_kernel[(programs,)](out, STEPS, BLOCK=BLOCK, num_warps=4), 20
        )
        return out.numel() * STEPS / seconds / 1e9
    x = torch.rand(2**14, device=device)
    seconds = Timer(device).median(lambda: [torch.exp2(x, out=x.neg_()) for _ in range(100)], 10)
    return 100 * x.numel() / seconds / 1e9
