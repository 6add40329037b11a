"""What FSDP2 and ZeRO have in common: a copy of the distiller whose weights are spread, while the one that
was given holds none, and gets them back whole when the stage has ended."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...core.output import Captures, Logits, Output
from ...core.tower import Student, run_plain
from ...distillation.distiller import Distiller

T = TypeVar("T")


def copied(home: Distiller) -> Distiller:
    """The same distiller around the same parameters, whose layers let nothing outside read their weights.
    All processes begin with those of the first, as under DDP."""
    if torch.distributed.is_initialized():
        for tensor in (*home.parameters(), *home.buffers()):
            sent = tensor.detach().contiguous()
            torch.distributed.broadcast(sent, 0)
            tensor.detach().copy_(sent)
    memo: dict[int, Any] = {id(parameter): parameter for parameter in home.parameters()}
    memo[id(home.teacher)] = home.teacher
    made = copy.deepcopy(home, memo)
    made.apart = True
    return made


def empty(module: nn.Module) -> None:
    """Its parameters are shapes alone, so that a spread copy's are the only ones in memory."""
    made: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                shape = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
                owner._parameters[name] = made.setdefault(id(parameter), shape)


def fill(module: nn.Module, state: Mapping[str, Tensor], device: torch.device) -> None:
    """Inverse of `empty`: parameters from `state`, shared ones shared as they were; buffers too."""
    made: dict[int, nn.Parameter] = {}
    for prefix, owner in module.named_modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    whole = state[f"{prefix}.{name}" if prefix else name].to(device)
                    made[id(parameter)] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
                owner._parameters[name] = made[id(parameter)]
    buffers = {name: state[name] for name, _ in module.named_buffers() if name in state}
    module.load_state_dict(buffers, strict=False)


def units_of(distiller: Distiller) -> list[nn.Module]:
    """The modules whose weights are spread each by itself; those of all others together."""
    student = distiller.student
    return list(student.units()) if isinstance(student, Student) else []


class Spread(nn.Module):
    """A student whose weights are spread, as evaluators use one: whatever it does is done within `enter`,
    which brings together the weights that are no unit's."""

    def __init__(
        self, student: nn.Module, enter: Callable[[Callable[[], Any]], Any], num_params: int
    ) -> None:
        super().__init__()
        self.student, self.enter, self.num_params = student, enter, num_params
        write: Any = getattr(student, "generate", None)
        if write is not None:
            self.generate = lambda *arguments: enter(partial(write, *arguments))

    def run(self, inputs: Mapping[str, Tensor], captures: Captures) -> Output:
        student = self.student
        if isinstance(student, Student):
            output = self.enter(partial(student.run, inputs, captures))
        else:
            output = self.enter(partial(run_plain, student, inputs))
        if output.logits is not None:
            head = output.logits.head
            output.logits = Logits(output.logits.hidden, lambda hidden: self.enter(partial(head, hidden)))
        return output
