"""Losses over a vocabulary, a few tokens at a time: the logits (B, L, V) of a step never exist at once.

Each chunk's gradients, of the last residual stream and of the head's weights, are found in the forward pass,
while its logits are there, and handed on in the backward pass (as Liger Kernel's fused linear cross-entropy
does it, arXiv 2410.10989): nothing is computed twice, and what is kept is (tokens, D) and the head's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..core.output import Logits

# tokens whose logits exist at a time: of 50 thousand words 400 MB in float32, enough to fill a GPU
CHUNK = 2048


def chunk_problems(chunk: int) -> list[str]:
    """What is wrong with the option `chunk`."""
    return [] if chunk >= 1 else [f"chunk is {chunk}; write a number of tokens, at least 1"]


def chunked(logits: Logits, tokens: Tensor, rows: int, value: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """The sum of `value` over chunks of tokens, a scalar, with gradients.

    tokens: (N,) which of the B * L tokens are looked at
    rows:   how many of them at a time
    value:  of logits (n, V), and which of `tokens` they are, the chunk's sum
    """
    hidden = logits.hidden.flatten(0, -2)
    chosen = hidden[tokens]
    if not torch.is_grad_enabled():
        sums = [value(logits.head(chosen[part]), part) for part in _parts(len(chosen), rows)]
        return torch.stack(sums).sum() if sums else _nothing(hidden)
    weights = _weights(logits.head(hidden[:1].detach()))
    total, found = _nothing(hidden), [torch.zeros_like(x, requires_grad=False) for x in (chosen, *weights)]
    for part in _parts(len(chosen), rows):
        total = total + _add(logits.head, chosen[part], weights, found, part, value)
    return _Known.apply(total, len(found), chosen, *weights, *found)


def _parts(count: int, rows: int) -> Iterator[slice]:
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def _nothing(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def _weights(made: Tensor) -> list[Tensor]:
    """The trained tensors that `made` was computed from, wherever they live: they stay in their modules."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    todo = [made.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        todo += [below for below, _ in node.next_functions]
    return list(found.values())


def _add(
    head: Callable[[Tensor], Tensor],
    chosen: Tensor,
    weights: Sequence[Tensor],
    found: Sequence[Tensor],
    part: slice,
    value: Callable[[Tensor, slice], Tensor],
) -> Tensor:
    """A chunk's value, its gradients added to `found`: of the stream first, then of the weights."""
    hidden = chosen.detach().requires_grad_()
    made = head(hidden)
    logits = made.detach().requires_grad_()
    one = value(logits, part)
    (slope,) = torch.autograd.grad(one, logits)
    # what a head reads may have been computed once for all chunks, such as autocast's copy of a weight
    grads = torch.autograd.grad(made, [hidden, *weights], slope, retain_graph=True, allow_unused=True)
    for place, (whole, grad) in enumerate(zip(found, grads, strict=True)):
        if grad is not None:
            (whole[part] if place == 0 else whole).add_(grad)
    return one.detach()


class _Known(torch.autograd.Function):
    """A value whose gradients with respect to some tensors are known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        ctx.count = count
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            (known * grad).to(known.dtype) if needed else None
            for known, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=False)
        ]
        return None, None, *scaled, *[None] * ctx.count
