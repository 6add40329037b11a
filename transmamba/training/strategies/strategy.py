"""What the trainer asks of a strategy, and the plain one: whole weights on every process, with DDP where
there are several."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...distillation.distiller import Distiller

if TYPE_CHECKING:
    from accelerate import Accelerator

MakeOptimizer = Callable[[Distiller], torch.optim.Optimizer]


class Strategy(Protocol):
    """Of one stage at a time: `prepare`, any number of steps, `release`.

    name:       as recipes/accelerate calls it
    reads:      names of the strategies whose checkpoints it loads
    resizes:    whether it loads those of another number of processes
    whole:      whether each process holds all weights of the student while it is trained
    model:      called as the distiller is; its gradients meet those of the other processes
    distiller:  what is trained: the one that was given, or a copy of it whose weights are spread
    optimizer:  whose `param_groups` hold the rate
    """

    name: str
    reads: frozenset[str]
    resizes: bool
    whole: bool
    accelerator: Accelerator
    distiller: Distiller
    optimizer: Any

    @property
    def model(self) -> Callable[..., Any]: ...

    def prepare(
        self, distiller: Distiller, make: MakeOptimizer, *, clip: float, peek: Callable[[], Batch]
    ) -> None:
        """Make a stage ready to be trained.

        make: the optimizer over a distiller's trainable parameters
        clip: largest norm of all gradients together; 0 for none
        peek: a batch as the stage's are, on its device
        """

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch; after the last one of a step gradients are added up
        over processes."""

    def backward(self, loss: Tensor) -> None:
        """Gradients are averaged over processes, so `loss` is its share times their number."""

    def norm(self) -> Tensor:
        """Of all gradients together, as they are before they are clipped. Once a step, on all processes."""

    def move(self, finite: bool) -> None:
        """One step of the optimizer, or none where loss or gradient are not finite; gradients are gone."""

    def student(self) -> Any:
        """The student as evaluators may use it, on all processes at the same time."""

    def full_state(self) -> Mapping[str, Tensor]:
        """Every parameter and buffer of the distiller, whole, on all processes."""

    def release(self) -> None:
        """The weights are back in the distiller that was given, whole."""

    def save(self, folder: Path) -> None:
        """Weights and optimizer, each process its own files. All call it."""

    def load(self, folder: Path) -> None:
        """Inverse of `save`."""


class Plain:
    """One process, or several with DDP.

    Arithmetic and files are those of Accelerate's `prepare`, `clip_grad_norm_` and `save_state`. Weights and
    optimizer are one file each, whoever wrote it; the generators' states, a file of each process, are what no
    step depends on.
    """

    reads = frozenset({"plain", "ddp"})
    resizes, whole = True, True
    model: Callable[..., Any]
    distiller: Distiller
    optimizer: Any

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.name = "ddp" if accelerator.num_processes > 1 else "plain"

    def prepare(
        self,
        distiller: Distiller,
        make: MakeOptimizer,
        *,
        clip: float = 0.0,
        peek: Callable[[], Batch] | None = None,
    ) -> None:
        self.distiller, self.clip = distiller, clip
        self._let_ddp_know(peek)
        self.model, prepared = self.accelerator.prepare(distiller, make(distiller))
        # without a scaler Accelerate's does what AdamW does, and looks for installed packages at each step
        self.optimizer = prepared.optimizer if self.accelerator.scaler is None else prepared
        self._trained = [p for group in self.optimizer.param_groups for p in group["params"]]

    def _let_ddp_know(self, peek: Callable[[], Batch] | None) -> None:
        """DDP waits for a gradient of every parameter unless it is told that some have none: of a head, where
        no loss reads the logits, or of a tower, where a batch has no input for it."""
        handler = self.accelerator.ddp_handler
        if handler is None or str(self.accelerator.distributed_type.value) == "NO":
            return
        unused = peek is None or len(getattr(self.distiller.student, "towers", ())) > 1
        if not unused and peek is not None:
            trained = {id(p) for p in self.distiller.parameters() if p.requires_grad}
            unused = bool(trained - reached(self.distiller, peek(), self.accelerator.autocast))
        told = torch.tensor(float(unused), device=self.accelerator.device)
        handler.find_unused_parameters = bool(self.accelerator.reduce(told, "sum") > 0)

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def norm(self) -> Any:
        return self.accelerator.clip_grad_norm_(self._trained, self.clip if self.clip > 0 else math.inf)

    def move(self, finite: bool) -> None:
        # the scaler of fp16 itself refuses the step, and halves its scale
        if finite or self.accelerator.scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def student(self) -> nn.Module:
        return self.distiller.student

    def full_state(self) -> Mapping[str, Tensor]:
        return self.distiller.state_dict()

    def release(self) -> None:
        self.accelerator.free_memory()

    def save(self, folder: Path) -> None:
        said = logging.getLogger("accelerate.utils.other")
        level = said.level
        said.setLevel(logging.ERROR)  # tied weights lie in the file once, and are both there when it is read
        try:
            self.accelerator.save_state(str(folder))
        finally:
            said.setLevel(level)

    def load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))


def reached(distiller: Distiller, batch: Batch, context: Callable[[], Any]) -> set[int]:
    """The ids of the trainable parameters through which a loss goes."""
    aligners: Any = list(distiller.aligners.values())
    measured = [aligner.measured for aligner in aligners]
    for aligner in aligners:
        aligner.measured = True  # a resumed run has its statistics from the checkpoint, which comes later
    with context():
        terms = distiller(batch)
    for aligner, before in zip(aligners, measured, strict=True):
        aligner.measured = before
    found, seen = set(), set()
    todo = [term.sum.grad_fn for term in terms.values() if term.sum.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo += [below for below, _ in node.next_functions if below is not None]
    return found
