"""FSDP2: weights, gradients and optimizer states in pieces, one of each process; a unit's weights are whole
while it is called.

Weights stay float32 and are gathered so, under the autocast of every other strategy, so that a recipe means
the same.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.batch import Batch
from ...distillation.distiller import Distiller
from .pieces import is_in_pieces, piece_of, read_pieces, state_of, weights_of, whole_of, write_pieces
from .spread import Spread, copied, empty, fill, units_of
from .strategy import MakeOptimizer

if TYPE_CHECKING:
    from accelerate import Accelerator


class Fsdp2:
    """Each of the student's units is a group of its own; embeddings, head, projections and losses together
    are the root's, whole from the forward pass to the end of the backward pass."""

    name = "fsdp2"
    reads = frozenset({"fsdp2"})
    resizes, whole = True, False
    model: Callable[..., Any]
    distiller: Distiller
    optimizer: Any

    def __init__(self, accelerator: Accelerator, reshard: bool = True) -> None:
        self.accelerator, self.reshard = accelerator, reshard

    def prepare(
        self, distiller: Distiller, make: MakeOptimizer, *, clip: float, peek: Callable[[], Batch]
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        # of what a mixer hands out beside its output some are views; nothing is changed in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        self.home, self.clip = distiller, clip
        self.num_params = sum(parameter.numel() for parameter in distiller.student.parameters())
        spread: Any = copied(distiller)
        empty(distiller)
        mesh = init_device_mesh(self.accelerator.device.type, (self.accelerator.num_processes,))
        # a single number, such as a learnt temperature, has no pieces: each process has it
        numbers = {parameter for parameter in spread.parameters() if not parameter.dim()}
        for unit in units_of(spread):
            fully_shard(unit, mesh=mesh, reshard_after_forward=self.reshard, ignored_params=numbers)
        spread.forward = _within(self.accelerator.autocast, spread.forward)
        fully_shard(spread, mesh=mesh, ignored_params=numbers)
        register_fsdp_forward_method(spread, "enter")
        self.distiller = self.model = spread
        self.optimizer = make(spread)
        _group_apart(self.optimizer, numbers)
        self._trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._numbers = [parameter for parameter in self._trained if parameter in numbers]

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        # every micro-batch's gradients are added up at once: kept whole until the last they would take the
        # memory that is to be saved
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def norm(self) -> Tensor:
        numbers = [number.grad for number in self._numbers if number.grad is not None]
        for grad in numbers:
            grad.copy_(self.accelerator.reduce(grad, "mean"))
        pieces = [_local(p.grad) for p in self._trained if p.grad is not None and is_in_pieces(p.grad)]
        squares = self.accelerator.reduce(_length(pieces, self.accelerator.device).square(), "sum")
        norm = (squares + _length(numbers, self.accelerator.device).square()).sqrt()
        if self.clip > 0 and (grads := [*pieces, *numbers]):
            torch._foreach_mul_(grads, (self.clip / (norm + 1e-6)).clamp(max=1.0))  # as clip_grad_norm_ does
        return norm

    def move(self, finite: bool) -> None:
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def student(self) -> Spread:
        return Spread(self.distiller.student, self.distiller.enter, self.num_params)

    def full_state(self) -> Mapping[str, Tensor]:
        return {name: whole_of(value).detach() for name, value in self.distiller.state_dict().items()}

    def release(self) -> None:
        fill(self.home, self.full_state(), self.accelerator.device)
        del self.distiller, self.model, self.optimizer, self._trained, self._numbers
        self.accelerator.free_memory()

    def save(self, folder: Path) -> None:
        saved = {
            "weights": {name: piece_of(value) for name, value in self.distiller.state_dict().items()},
            "optimizer": [
                {key: piece_of(value) for key, value in self.optimizer.state[parameter].items()}
                for parameter in self._trained
            ],
        }
        write_pieces(saved, folder, self.accelerator.process_index)

    def load(self, folder: Path) -> None:
        every = read_pieces(folder)
        own = self.distiller.state_dict()
        self.distiller.load_state_dict(weights_of(every, own, self.accelerator.process_index))
        states = zip(*(saved["optimizer"] for saved in every), strict=True)
        for parameter, saved in zip(self._trained, states, strict=True):
            if state := state_of(saved, parameter):
                self.optimizer.state[parameter] = {
                    key: value if value.dim() else self._count(value) for key, value in state.items()
                }

    def _count(self, steps: Tensor) -> Tensor:
        """Where AdamW itself keeps the number of its steps: beside the weights if it is fused."""
        return steps.to(self.accelerator.device) if self.optimizer.param_groups[0].get("fused") else steps


def _within(context: Callable[[], Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    def entered(*arguments: Any, **named: Any) -> Any:
        with context():
            return forward(*arguments, **named)

    return entered


def _group_apart(optimizer: torch.optim.Optimizer, numbers: set[Any]) -> None:
    """Numbers in groups of their own: what is in pieces is not moved in one call with what is not."""
    for group in list(optimizer.param_groups):
        mine = [parameter for parameter in group["params"] if parameter in numbers]
        if mine and len(mine) < len(group["params"]):
            group["params"] = [parameter for parameter in group["params"] if parameter not in numbers]
            optimizer.add_param_group({**group, "params": mine})


def _length(tensors: list[Tensor], device: torch.device) -> Tensor:
    """The norm of all of them together; 0 of none."""
    if not tensors:
        return torch.zeros((), device=device)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def _local(value: Any) -> Tensor:
    """This process's piece itself."""
    return value.to_local()
