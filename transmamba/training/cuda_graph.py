"""Forward and backward of a micro-batch as one CUDA graph.

A small student launches thousands of short kernels a step, and Python is slower at launching them than the
GPU at running them. Recorded once and replayed, a step costs one launch. What is recorded are kernels and
addresses: so inputs are copied into the tensors it was recorded with, gradients stay where they are, random
numbers come from the default generator, which every replay reads anew, and nothing in it may wait for the
GPU.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UserError

Result = TypeVar("Result")

# Steps run as they are first: lazy set-up, and which parameters get a gradient.
WARMUP = 3


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: what it frees may call the driver in the middle of a recording."""
    collected = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def first_error(error: BaseException) -> str:
    """What failed first: the end of a spoiled recording raises another error over it."""
    while isinstance(error.__context__, Exception):
        error = error.__context__
    return " ".join([f"{type(error).__name__}:", *str(error).strip().splitlines()[:1]])


def refuse_waiting(model: nn.Module) -> None:
    """Raises UserError where a part of it says that it `waits` for the device: known before the first step,
    where a recording would fail after some."""
    for module in model.modules():
        if why := getattr(module, "waits", ""):
            raise UserError(
                f"trainer.cuda_graphs is true, but {why}, which a recorded step cannot; write "
                "trainer.cuda_graphs=false"
            )


class Recording(Generic[Result]):
    """`body(*inputs, constants)` as a CUDA graph. Calling it copies new values in, replays, and returns the
    same result object, whose tensors hold until the next call."""

    def __init__(
        self, body: Callable[..., Result], inputs: Sequence[Tensor | None], constants: Hashable
    ) -> None:
        self.inputs = [None if tensor is None else tensor.clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        # not "global": the thread that loads the next batch may allocate meanwhile
        with _uncollected(), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.result = body(*self.inputs, constants)

    def __call__(self, *inputs: Tensor | None) -> Result:
        for held, new in zip(self.inputs, inputs, strict=True):
            if held is not None and new is not None:
                held.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.result


class GraphedStep(Generic[Result]):
    """Runs `body(*inputs, constants)`, which ends with a backward: three times as it is, then recorded.

    body: must not hold on to what its backward went through: a graph of autograd that outlives its step ties
        the parameters' gradients to another stream than the recording's
    constants: numbers that a recording keeps; with others, or other shapes, the body runs as it is
    parameters: whose gradients the backward adds to

    Raises UserError where the body cannot be recorded: what is left of CUDA's state then is nothing to train
    on.
    """

    def __init__(self, body: Callable[..., Result], parameters: Iterable[nn.Parameter]) -> None:
        self.body, self.parameters = body, list(parameters)
        self._recorded: Recording[Result] | None = None
        self._key: Hashable = None
        self._calls = 0
        self._trained: set[nn.Parameter] = set()
        self._places: dict[nn.Parameter, Tensor] = {}

    def __call__(self, *inputs: Tensor | None, constants: Hashable = None) -> Result:
        key = (constants, tuple(None if x is None else (x.shape, x.dtype) for x in inputs))
        if self._calls == WARMUP:
            self._start(inputs, constants, key)
        self._calls += 1
        self._restore_places()
        if self._recorded is not None and key == self._key:
            return self._recorded(*inputs)
        result = self.body(*inputs, constants)
        if self._calls <= WARMUP:
            self._trained |= {p for p in self.parameters if p.grad is not None}
        return result

    def _start(self, inputs: Sequence[Tensor | None], constants: Hashable, key: Hashable) -> None:
        # the others' gradients stay None, or weight decay would begin to move them
        self._places = {p: torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained}
        self._restore_places()
        try:
            self._recorded, self._key = Recording(self.body, inputs, constants), key
        except RuntimeError as error:
            raise UserError(
                f"trainer.cuda_graphs: a step could not be recorded ({first_error(error)}); write false for "
                "it and start the same command again"
            ) from error

    def _restore_places(self) -> None:
        """Gradients that an optimizer dropped are zeros again where the recording adds to them."""
        dropped = [p for p in self._places if p.grad is None]
        if dropped:
            torch._foreach_zero_([self._places[p] for p in dropped])
        for parameter in dropped:
            parameter.grad = self._places[parameter]
