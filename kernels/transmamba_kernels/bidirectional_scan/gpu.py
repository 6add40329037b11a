"""Vim's two scans in Triton: the second one merges and gates, unless the branches themselves are wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..packing import real_tokens, zero_padding
from ..selective_scan.launch import Forward, Gradients, run_backward, run_forward
from ..selective_scan.plan import Scan, saved_like
from ..torch_ops import Operator, Outputs, differentiable, fitted, nothing, or_nothing
from ..triton_common import FUSED, cdiv, on_device_of, rows
from . import cpu
from .kernels import gate_backward_kernel, gate_kernel
from .reference import Direction, without_padding

BLOCK = 2048


def bidirectional_scan(
    ahead: Direction,
    back: Direction,
    z: Tensor | None,
    delta_softplus: bool,
    return_branches: bool,
    lengths: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """The merged output (B, L, D), or (merged, forward, backward)."""
    if ahead[0].numel() == 0:
        return cpu.bidirectional_scan(ahead, back, z, delta_softplus, return_branches, lengths)
    ahead, back, delta_softplus = without_padding(ahead, back, delta_softplus, lengths)
    tensors = (*(x for pair in zip(ahead, back, strict=True) for x in pair), z)
    keep = differentiable(*tensors)
    out = SCANS(*tensors, delta_softplus, return_branches, keep)
    real = real_tokens(ahead[0].shape[1], None, lengths)
    y, y_f, y_b = (zero_padding(x, real) if x.numel() else x for x in out)
    return (y, y_f, y_b) if return_branches else y


def _scans(tensors: tuple[Any, ...], z: Tensor | None, delta_softplus: bool) -> tuple[Scan, Scan]:
    """Both directions; z goes to the second, which gates."""
    (u, delta, A, B, C, D, bias), theirs = tensors[0:14:2], tensors[1:14:2]
    ahead = Scan.make(u, delta, A, B, C, D, None, bias, None, delta_softplus, False)
    u, delta, A, B, C, D, bias = theirs
    return ahead, Scan.make(u, delta, A, B, C, D, z, bias, None, delta_softplus, True)


def _forward(*arguments: Any) -> Outputs:
    tensors, (delta_softplus, branches, keep) = arguments[:15], arguments[15:]
    z = tensors[14]
    ahead, back = _scans(tensors, None if branches else z, delta_softplus)
    u = ahead.u
    first = run_forward(ahead, None, False, keep)
    if not branches:
        second = run_forward(back, None, False, keep, other=first.y)
        given = (None, None, *_saved(first), *_saved(second), second.mean, None)
        return second.y, *(or_nothing(x, u) for x in given)
    second = run_forward(back, None, False, keep)
    y, y_f, y_b = (torch.empty_like(first.y) for _ in range(3))
    (_, length, channels), z = u.shape, None if z is None else rows(z)
    with on_device_of(u):
        gate_kernel[(cdiv(y.numel(), BLOCK),)](
            first.y, second.y, u if z is None else z, y, y_f, y_b, y.numel(), channels,
            0 if z is None else z.stride(0), 0 if z is None else z.stride(1), length,
            HAS_Z=z is not None, BLOCK=BLOCK, num_warps=8, **FUSED,
        )  # fmt: skip
    raw = (first.y, second.y) if keep and z is not None else (None, None)
    saved = (*_saved(first), *_saved(second), *raw)
    return y, y_f, y_b, *(or_nothing(x, u) for x in saved)


def _saved(out: Forward) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return out.kept, out.rates, out.rows


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    delta_softplus, branches, _ = flags
    z = None if tensors[14] is None else rows(tensors[14])
    (kept, rates, packed), (kept_b, rates_b, packed_b), (raw, raw_b) = saved[:3], saved[3:6], saved[6:]
    ahead, back = _scans(tensors, None, delta_softplus)
    u, gy = ahead.u, grads[0].contiguous()
    g_f = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    g_b = torch.empty_like(g_f) if branches else g_f
    g_z = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    branch_grads = [grad.contiguous() for grad in grads[1:]] if branches else [gy, gy]
    with on_device_of(u):
        gate_backward_kernel[(cdiv(u.numel(), BLOCK),)](
            gy, *branch_grads, u if z is None else z, gy if z is None else raw,
            raw_b if branches and z is not None else gy, g_f, g_b, g_f if g_z is None else g_z, u.numel(),
            u.shape[2], 0 if z is None else z.stride(0), 0 if z is None else z.stride(1), u.shape[1],
            HAS_Z=z is not None, BRANCHES=branches, BLOCK=BLOCK, num_warps=8, **FUSED,
        )  # fmt: skip
    ours = run_backward(ahead, (kept, rates, packed), g_f, None)
    theirs = run_backward(back, (kept_b, rates_b, packed_b), g_b, None)
    found = [x for pair in zip(_ordered(ours), _ordered(theirs), strict=True) for x in pair]
    return fitted([*found, g_z], tensors, u)


def _ordered(g: Gradients) -> tuple[Tensor, ...]:
    return g.u, g.delta, g.A, g.B, g.C, g.D, g.delta_bias


def _fake(*arguments: Any) -> Outputs:
    u, A, (B, B_b), z, (_, branches, keep) = (
        arguments[0], arguments[4], arguments[6:8], arguments[14], arguments[15:],
    )  # fmt: skip

    def like() -> Tensor:
        return torch.empty(u.shape, dtype=u.dtype, device=u.device)

    kept = (*saved_like(u, A, B), *saved_like(u, A, B_b)) if keep else (nothing(u),) * 6
    gated = keep and z is not None
    return (
        like(),
        like() if branches else nothing(u),
        like() if branches else nothing(u),
        *kept,
        like() if gated else nothing(u),
        like() if gated and branches else nothing(u),
    )


SCANS = Operator(
    "bidirectional_scan",
    "Tensor u, Tensor u_b, Tensor delta, Tensor delta_b, Tensor A, Tensor A_b, Tensor B, Tensor B_b, "
    "Tensor C, Tensor C_b, Tensor? D, Tensor? D_b, Tensor? delta_bias, Tensor? delta_bias_b, Tensor? z, "
    "bool delta_softplus, bool branches, bool keep",
    visible=3,
    forward=_forward,
    backward=_backward,
    fake=_fake,
    saved=8,
)
