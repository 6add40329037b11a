"""Both directions of the SSD scan in Triton, each pair of a chunk's tokens met once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ssd_scan.gpu import fits
from ..ssd_scan.launch import Problem
from ..torch_ops import Operator, Outputs, nothing
from . import cpu
from .reference import at_tokens


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
    tensors = (*inputs[:-1], seq_idx, lengths)
    if return_branches:
        y_f, y_b = _split_operator(*tensors, delta_softplus)
        chosen = (y_f, y_b) if branch_tokens is None else at_tokens(branch_tokens, y_f, y_b)
        return y_f + y_b, chosen[0] * 2, chosen[1] * 2
    y: Tensor = _operator(*tensors, delta_softplus)[0]
    return y


NAMES = ("x", "delta", "A", "B", "C", "A_b", "delta_b", "bias", "seq_idx", "lengths")


def _problem(tensors: tuple[Any, ...], softplus: bool, split: bool = False) -> Problem:
    return Problem(**dict(zip(NAMES, tensors, strict=True)), softplus=softplus, back=True, split=split)


def _forward(*arguments: Any) -> Outputs:
    (y, _), _ = _problem(arguments[:-1], arguments[-1]).forward()
    return y, nothing(y)


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    found = _problem(tensors, flags[0]).gradients(grads[0])
    return tuple(found[name] if name in found else nothing(grads[0]) for name in NAMES)


def _fake(*arguments: Any) -> Outputs:
    y = torch.empty_like(arguments[0], memory_format=torch.contiguous_format)
    return y, nothing(y)


SCHEMA = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? A_b, Tensor? delta_b, Tensor? delta_bias, "
    "Tensor? seq_idx, Tensor? lengths, bool softplus"
)
_operator = Operator("bidirectional_ssd", SCHEMA, 1, _forward, _backward, _fake, 1)


def _split_forward(*arguments: Any) -> Outputs:
    outputs, _ = _problem(arguments[:-1], arguments[-1], True).forward()
    return outputs


def _split_backward(
    grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]
) -> Outputs:
    found = _problem(tensors, flags[0], True).gradients(grads[0], dy_b=grads[1])
    return tuple(found[name] if name in found else nothing(grads[0]) for name in NAMES)


def _split_fake(*arguments: Any) -> Outputs:
    y = torch.empty_like(arguments[0], memory_format=torch.contiguous_format)
    return y, torch.empty_like(y)


# Each direction's sum with half of a token's own term.
_split_operator = Operator(
    "bidirectional_ssd_split", SCHEMA, 2, _split_forward, _split_backward, _split_fake, 0
)
