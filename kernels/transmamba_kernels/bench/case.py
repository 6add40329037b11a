"""A measured operator at a shape, and the random tensors that it is called with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..backend import VARIABLE

OURS, PLAIN = "transmamba_kernels", "pytorch path"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """`run(**tensors)`; all floating-point tensors have gradients, unless the call is for generation.

    bytes_again: of what is written in place, on top of every tensor read once.
    """

    run: Callable[..., Any]
    tensors: Tensors
    trains: bool = True
    bytes_again: int = 0


@dataclass(frozen=True)
class Case:
    """An operator at a shape; `calls` build their tensors when asked.

    elements: those of the mixed sequence, or of the state. exps: exponentials that it cannot avoid.
    """

    op: str
    shape: dict[str, int]
    elements: int
    exps: int
    calls: dict[str, Callable[[], Call]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return " ".join(f"{name}{size}" for name, size in self.shape.items())


class Draw:
    """Random tensors of one case, the same numbers for every implementation."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0, wide: bool = False) -> Tensor:
        dtype = torch.float32 if wide else self.dtype
        x = torch.randn(shape, generator=self.generator, device=self.device)
        return (scale * x).to(dtype)

    def rates(self, *shape: int) -> Tensor:
        """-1 ... -N along the last dimension."""
        steps = torch.arange(1, shape[-1] + 1, device=self.device, dtype=torch.float32)
        return -steps.expand(shape).contiguous()

    def full(self, value: float, *shape: int) -> Tensor:
        return torch.full(shape, value, device=self.device)


def plain(run: Callable[..., Any]) -> Callable[..., Any]:
    """The operator on its PyTorch path."""

    def forced(**tensors: Tensor) -> Any:
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = "cpu"
        try:
            return run(**tensors)
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before

    return forced
