"""The other implementations, where they are installed: mamba_ssm, causal-conv1d, flash-linear-attention."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from typing import Any

import torch
from torch import Tensor

# Why a module is missing, by its name; for the report.
absent: dict[str, str] = {}


@functools.cache
def module(name: str) -> Any:
    """The module, or None.

    A package whose own `__init__` fails is entered around it: mamba_ssm's imports CUDA extensions that its
    Triton parts do not need.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:
        absent[name] = f"{type(error).__name__}: {error}"
    package = name.split(".")[0]
    for loaded in [m for m in sys.modules if m == package or m.startswith(package + ".")]:
        del sys.modules[loaded]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if package == name or spec is None or not spec.submodule_search_locations:
        return None
    bare = types.ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = bare
    bare.__version__ = ""  # type: ignore[attr-defined]
    try:
        found = importlib.import_module(name)
    except Exception:  # the first error is the one that says what is missing
        return None
    absent.pop(name, None)
    return found


class CudaScan(torch.autograd.Function):
    """mamba_ssm's CUDA scan, with its softplus: u, delta, z (B, D, L), B, C (B, 1, N, L)."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        out, states, gated = module("selective_scan_cuda").fwd(*tensors, True)
        ctx.save_for_backward(*tensors, states, out)
        return gated

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        *tensors, states, out = ctx.saved_tensors
        u, delta, A, B, C, D, bias, z = module("selective_scan_cuda").bwd(
            *tensors, grad.contiguous(), states, out, None, True, False
        )
        return u, delta, A, B, C, D, z, bias


def selective_scan() -> Any:
    """f(u, delta, A, B, C, D, z, delta_bias) with softplus, or None."""
    return None if module("selective_scan_cuda") is None else CudaScan.apply


def ssd() -> Any:
    """f(x, delta, A, B, C, D, delta_bias) with softplus and chunks of 256, or None."""
    found = module("mamba_ssm.ops.triton.ssd_combined")
    if found is None:
        return None
    scan = found.mamba_chunk_scan_combined
    return lambda x, delta, A, B, C, D, delta_bias: scan(
        x, delta, A, B, C, 256, D=D, dt_bias=delta_bias, dt_softplus=True
    )


def state_update() -> Any:
    found = module("mamba_ssm.ops.triton.selective_state_update")
    return None if found is None else found.selective_state_update


def simple_gla() -> Any:
    """f(q, k, v, g), (B, L, H, N or P) and (B, L, H): an SSD without its own delta, D and z; or None."""
    found = module("fla.ops.simple_gla")
    if found is None:
        return None
    return lambda q, k, v, g: found.chunk_simple_gla(q, k, v, g, scale=1.0)[0]


def conv1d() -> Any:
    """f(x (B, D, L), weight, bias) with silu, or None."""
    found = module("causal_conv1d")
    return (
        None
        if found is None
        else lambda x, weight, bias: found.causal_conv1d_fn(x, weight, bias, activation="silu")
    )
