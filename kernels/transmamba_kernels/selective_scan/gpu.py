"""The selective scan in Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch_ops import Operator, Outputs, differentiable, fitted, nothing, or_nothing
from . import cpu
from .launch import run_backward, run_forward
from .plan import Scan, saved_like


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    return_final_state: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as in `transmamba_kernels.selective_scan`. y (B, L, D), final state (B, D, N) or None."""
    if u.numel() == 0:
        return cpu.selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, return_final_state,
            reverse,
        )  # fmt: skip
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    keep = differentiable(*tensors)
    y, state = SCAN(*tensors, seq_idx, delta_softplus, return_final_state, reverse, keep)
    return y, state if return_final_state else None


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    delta_softplus: bool,
    final: bool,
    reverse: bool,
    keep: bool,
) -> Outputs:
    scan = Scan.make(u, delta, A, B, C, D, z, delta_bias, seq_idx, delta_softplus, reverse)
    out = run_forward(scan, initial_state, final, keep)
    saved = (out.kept, out.rates, out.rows)
    return out.y, or_nothing(out.final, u, torch.float32), *(or_nothing(x, u) for x in saved)


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    u, delta, A, B, C, D, z, delta_bias, _, seq_idx = tensors
    delta_softplus, final, reverse, _ = flags
    scan = Scan.make(u, delta, A, B, C, D, z, delta_bias, seq_idx, delta_softplus, reverse)
    kept, rates, rows = saved
    g = run_backward(scan, (kept, rates, rows), grads[0], grads[1] if final else None)
    found = (g.u, g.delta, g.A, g.B, g.C, g.D, g.z, g.delta_bias, g.state.transpose(1, 2), None)
    return fitted(found, tensors, u)


def _fake(*arguments: Any) -> Outputs:
    (u, _, A, B), final, keep = arguments[:4], arguments[11], arguments[13]
    state = nothing(u, torch.float32)
    if final:
        state = u.new_empty(u.shape[0], A.shape[1], u.shape[2], dtype=torch.float32).transpose(1, 2)
    saved = saved_like(u, A, B) if keep else (nothing(u),) * 3
    return torch.empty(u.shape, dtype=u.dtype, device=u.device), state, *saved


SCAN = Operator(
    "selective_scan",
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, Tensor? seq_idx, bool delta_softplus, bool final, bool reverse, bool keep",
    visible=2,
    forward=_forward,
    backward=_backward,
    fake=_fake,
    saved=3,
)
