"""The SSD scan in Triton: chunks of 64 tokens on tensor cores; the backward needs nothing but the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch_ops import Operator, Outputs, nothing, or_nothing
from . import cpu
from .launch import Problem, fits

__all__ = ["fits", "ssd_scan"]


def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as in `transmamba_kernels.ssd_scan`, checked by it: y (B, L, H, P), final state (B, H, P, N)
    or None. Heads and states too large for the kernels take the PyTorch path.
    """
    if not fits(x.shape[3], B.shape[3]):
        return cpu.ssd_scan(
            x, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, lengths,
            return_final_state, reverse,
        )  # fmt: skip
    y, final = _operator(
        x, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, lengths,
        delta_softplus, reverse, return_final_state,
    )  # fmt: skip
    return y, final if return_final_state else None


NAMES = ("x", "delta", "A", "B", "C", "D", "z", "bias", "initial_state", "seq_idx", "lengths")


def _problem(tensors: tuple[Any, ...], softplus: bool, reverse: bool) -> Problem:
    return Problem(
        **dict(zip(NAMES, tensors, strict=True)), softplus=softplus, ahead=not reverse, back=reverse
    )


def _forward(*arguments: Any) -> Outputs:
    *tensors, softplus, reverse, final = arguments
    (y, _), state = _problem(tuple(tensors), softplus, reverse).forward(final)
    return y, or_nothing(state, y, torch.float32)


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    softplus, reverse, final = flags
    problem = _problem(tensors, softplus, reverse)
    found = problem.gradients(grads[0], grads[1] if final else None)
    return tuple(found[n] if n in found else nothing(grads[0]) for n in NAMES)


def _fake(*arguments: Any) -> Outputs:
    x, B, final = arguments[0], arguments[3], arguments[-1]
    batch, _, heads, width = x.shape
    state = x.new_empty((batch, heads, width, B.shape[3]) if final else 0, dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.contiguous_format), state


_operator = Operator(
    "ssd_scan",
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, Tensor? seq_idx, Tensor? lengths, bool softplus, bool reverse, bool final",
    2,
    _forward,
    _backward,
    _fake,
    0,
)
