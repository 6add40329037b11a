"""Both directions of the SSD scan in Triton, each pair of a chunk's tokens met once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..packing import zero_padding
from ..ssd_scan import aot
from ..ssd_scan.gpu import fits, ssd_scan
from ..ssd_scan.launch import Problem
from ..ssd_scan.reference import step_size
from ..torch_ops import Operator, Outputs, nothing
from . import cpu
from .reference import with_tokens


def bidirectional_ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    A_b: Tensor | None = None,
    delta_b: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_branches: bool = False,
    quadratic_limit: int = 1024,
    branch_tokens: Tensor | None = None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `transmamba_kernels.bidirectional_ssd`, checked by it; the work grows with L, not with
    its square, whatever `quadratic_limit`. Heads and states too large for the kernels take the PyTorch path.
    """
    inputs = (x, delta, A, B, C, A_b, delta_b, delta_bias, delta_softplus)
    if not fits(x.shape[3], B.shape[3]):
        run = cpu.by_matrix if x.shape[1] <= quadratic_limit else cpu.by_scans
        return run(*inputs, return_branches, branch_tokens, seq_idx, lengths)
    if return_branches:
        return _branches(*inputs, branch_tokens, seq_idx, lengths)
    y: Tensor = _operator(*inputs[:-1], seq_idx, lengths, delta_softplus)[0]
    return y


def _branches(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    A_b: Tensor | None,
    delta_b: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    branch_tokens: Tensor | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """By two scans, each less its own terms."""
    match = (C.float() * B.float()).sum(-1).repeat_interleave(x.shape[2] // B.shape[2], dim=2)

    def branch(delta: Tensor, A: Tensor, reverse: bool) -> Tensor:
        y, _ = ssd_scan(
            x, delta, A, B, C, delta_bias=delta_bias, delta_softplus=delta_softplus, seq_idx=seq_idx,
            lengths=lengths, reverse=reverse,
        )  # fmt: skip
        dt = step_size(delta, delta_bias, delta_softplus, torch.float32, lengths)
        return zero_padding(2 * y - (match * dt).unsqueeze(-1) * x, lengths)

    y_f = branch(delta, A, False)
    y_b = branch(delta if delta_b is None else delta_b, A if A_b is None else A_b, True)
    y = ((y_f + y_b) * 0.5).to(x.dtype)
    return with_tokens(y, y_f.to(x.dtype), y_b.to(x.dtype), branch_tokens)


NAMES = ("x", "delta", "A", "B", "C", "A_b", "delta_b", "bias", "seq_idx", "lengths")


def _problem(tensors: tuple[Any, ...], softplus: bool) -> Problem:
    return Problem(**dict(zip(NAMES, tensors, strict=True)), softplus=softplus, back=True)


def _forward(*arguments: Any) -> Outputs:
    y, _ = _problem(arguments[:-1], arguments[-1]).forward()
    return y, nothing(y)


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    found = _problem(tensors, flags[0]).gradients(grads[0])
    return tuple(found[name] if name in found else nothing(grads[0]) for name in NAMES)


def _fake(*arguments: Any) -> Outputs:
    y = torch.empty_like(arguments[0], memory_format=torch.contiguous_format)
    return y, nothing(y)


_operator = Operator(
    "bidirectional_ssd",
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? A_b, Tensor? delta_b, Tensor? delta_bias, "
    "Tensor? seq_idx, Tensor? lengths, bool softplus",
    1,
    _forward,
    _backward,
    _fake,
    1,
)


def aot_cases() -> list[aot.Case]:
    """What tests/kernels/test_aot.py compiles: ssd_vit, few chunks and many."""
    found: list[aot.Case] = []
    for length in (197, 785):
        tensors = aot.tensors((64, length, 6, 64), 6, 64, torch.bfloat16, "A_b")
        found += aot.cases(Problem(**tensors, softplus=True, back=True))
    return found
