"""One operator behind two doors: an autograd Function for eager calls, a registered op for torch.compile.

Calling a registered op costs some 30 microseconds more than calling its Function, as much as a short kernel
takes; torch.compile can only see the op. Both run the same forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]


class Operator:
    """`transmamba::name`, differentiable once, its gradients by `transmamba::name_backward`.

    schema: the arguments in torch's schema language, all tensors (`Tensor` or `Tensor?`) before all flags.
    forward(*arguments) gives `visible` outputs and then what the backward needs, always the same number of
    tensors, at least two in all (torch takes one alone for no tuple); an output that was not asked for is
    empty, of shape (0,). backward(grads, tensors, saved, flags) gives one gradient a tensor argument, of its
    shape and dtype, or an empty one; `grads` holds one tensor a visible output. With `saves_outputs` its
    `saved` begins with the visible outputs. fake(*arguments) gives the outputs' shapes and dtypes as tensors
    that are never read.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        visible: int,
        forward: Callable[..., Outputs],
        backward: Callable[[Outputs, tuple[Any, ...], Outputs, tuple[Any, ...]], Outputs],
        fake: Callable[..., Outputs],
        saved: int,
        saves_outputs: bool = False,
    ) -> None:
        arguments = [part.strip() for part in schema.split(",")]
        self.tensors = sum(part.startswith("Tensor") for part in arguments)
        self.visible, self._forward, self._backward = visible, forward, backward
        self._kept = 0 if saves_outputs else visible
        flags = "".join(f", {part.split('=')[0]}" for part in arguments[self.tensors :])
        results = ", ".join(["Tensor"] * (visible + saved))
        self._op = torch.library.custom_op(
            f"transmamba::{name}", forward, mutates_args=(), schema=f"({schema}) -> ({results})"
        )
        self._op.register_fake(fake)
        self._op.register_autograd(self._differentiate_op, setup_context=self._remember)

        def run_backward(grads: Any, tensors: Any, kept: Any, *values: Any) -> list[Tensor]:
            # as `_fake_gradients` promises: what is compiled around it may view them
            return [g.contiguous() for g in backward(tuple(grads), tuple(tensors), tuple(kept), values)]

        self._backward_op = torch.library.custom_op(
            f"transmamba::{name}_backward",
            run_backward,
            mutates_args=(),
            schema=f"(Tensor[] grads, Tensor?[] tensors, Tensor[] saved{flags}) -> Tensor[]",
        )
        self._backward_op.register_fake(_fake_gradients)
        self._function = _function(self)

    def __call__(self, *arguments: Any) -> Outputs:
        """The visible outputs."""
        if torch.compiler.is_compiling():
            return tuple(self._op(*arguments)[: self.visible])
        tensors = arguments[: self.tensors]
        if differentiable(*tensors):
            return tuple(self._function.apply(*arguments)[: self.visible])
        return tuple(self._forward(*arguments)[: self.visible])

    def _remember(self, ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        ctx.mark_non_differentiable(*output[self.visible :])
        # What was saved would get a gradient of zeros, as large as itself.
        ctx.set_materialize_grads(False)
        ctx.visible = [(y.shape, y.dtype, y.device) for y in output[: self.visible]]
        ctx.save_for_backward(*inputs[: self.tensors], *output[self._kept :])
        ctx.flags = inputs[self.tensors :]

    def _differentiate_op(self, ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        # Read once: activation checkpointing refuses a second time.
        saved = ctx.saved_tensors
        tensors, kept = saved[: self.tensors], saved[self.tensors :]
        grads = tuple(grad.contiguous() for grad in self._given(grads, ctx))
        found = self._backward_op(list(grads), list(tensors), list(kept), *ctx.flags)
        return self._fitted(tensors, found, ctx)

    def _differentiate(self, ctx: Any, *grads: Any) -> tuple[Any, ...]:
        # Read once: activation checkpointing refuses a second time.
        saved = ctx.saved_tensors
        tensors, kept = saved[: self.tensors], saved[self.tensors :]
        found = self._backward(self._given(grads, ctx), tensors, kept, ctx.flags)
        return self._fitted(tensors, found, ctx)

    def _given(self, grads: tuple[Any, ...], ctx: Any) -> Outputs:
        """The gradients of the visible outputs; zeros for one that nobody used."""
        return tuple(
            torch.zeros(shape, dtype=dtype, device=device) if grad is None else grad
            for grad, (shape, dtype, device) in zip(grads, ctx.visible, strict=False)
        )

    def _fitted(self, tensors: Any, found: Any, ctx: Any) -> tuple[Any, ...]:
        fitted = [
            grad if x is not None and x.is_floating_point() else None
            for x, grad in zip(tensors, found, strict=True)
        ]
        return (*fitted, *[None] * len(ctx.flags))


def _function(operator: Operator) -> type[torch.autograd.Function]:
    from torch.autograd.function import once_differentiable

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Outputs:
            # Not as a `setup_context`: torch would inspect the signature at every call, 40 microseconds.
            output = operator._forward(*arguments)
            operator._remember(ctx, arguments, output)
            return output

        backward = staticmethod(once_differentiable(operator._differentiate))  # type: ignore[assignment]

    return Eager


def _fake_gradients(grads: Any, tensors: Any, saved: Any, *flags: Any) -> list[Tensor]:
    return [
        nothing(grads[0]) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in tensors
    ]


def nothing(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What stands for None among the outputs of an operator: shape (0,)."""
    return like.new_empty(0, dtype=dtype)


def or_nothing(tensor: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An output that may not have been asked for."""
    return nothing(like, dtype) if tensor is None else tensor


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def fitted(grads: Iterable[Tensor | None], tensors: Sequence[Tensor | None], like: Tensor) -> Outputs:
    """The gradients in the shapes and dtypes of their tensors; empty where there is none."""
    return tuple(
        nothing(like) if x is None or grad is None else grad.reshape(x.shape).to(x.dtype).contiguous()
        for x, grad in zip(tensors, grads, strict=True)
    )
