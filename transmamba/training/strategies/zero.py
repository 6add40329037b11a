"""DeepSpeed's ZeRO: stage 2 spreads gradients and optimizer states over processes, stage 3 weights too.

Its engine is driven here and not by Accelerate, which steps it within the backward pass, before anyone could
see that a gradient is not finite. Weights stay float32 under autocast, as in every other strategy.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...core.batch import Batch
from ...core.output import Term
from ...distillation.distiller import Distiller
from .spread import Spread, copied, empty, fill, units_of
from .strategy import MakeOptimizer, reached

if TYPE_CHECKING:
    from accelerate import Accelerator

_TAG = "zero"
# a layer's record is no tuple of tensors; its stream is, and is enough to tell when its weights are needed
logging.getLogger("DeepSpeed").addFilter(
    lambda record: "unknown inputs or outputs" not in record.getMessage()
)


class Zero:
    """Stage 3 brings together the weights of each of the student's units while it is called; those of
    embeddings, head, projections and losses for a whole pass."""

    distiller: Distiller
    optimizer: Any
    # its engine's checkpoints are cut for the number of processes that wrote them
    resizes = False

    def __init__(self, accelerator: Accelerator, stage: int) -> None:
        self.accelerator, self.stage, self.name = accelerator, stage, f"zero{stage}"
        self.reads, self.whole = frozenset({self.name}), stage < 3

    def prepare(
        self, distiller: Distiller, make: MakeOptimizer, *, clip: float, peek: Callable[[], Batch]
    ) -> None:
        self.home, self.clip = distiller, clip
        self.num_params = sum(parameter.numel() for parameter in distiller.student.parameters())
        trained = self._trained(distiller, peek)
        spread = copied(distiller)
        empty(distiller)
        for parameter in spread.parameters():
            # its gradient would be zeros here and none elsewhere, where weight decay leaves it alone
            parameter.requires_grad_(id(parameter) in trained)
        spread.forward = _flat(self.accelerator.autocast, spread.forward)  # type: ignore[method-assign]
        self._renamed = _keep_numbers(spread)
        if self.stage == 3:
            _bring_together(spread)
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=spread, optimizer=make(spread), config=self._config()
        )
        self.distiller = spread

    def _trained(self, distiller: Distiller, peek: Callable[[], Batch]) -> set[int]:
        """The ids of the parameters that any process's first batch reaches; of a student of several towers
        all that are trained, for another batch may have an input that this one lacks."""
        mine = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
        if len(getattr(distiller.student, "towers", ())) > 1:
            return {id(parameter) for parameter in mine}
        found = reached(distiller, peek(), self.accelerator.autocast)
        mask = torch.tensor([float(id(parameter) in found) for parameter in mine])
        anywhere = self.accelerator.reduce(mask.to(self.accelerator.device), "sum")
        return {id(parameter) for parameter, any_of in zip(mine, anywhere, strict=True) if any_of > 0}

    def _config(self) -> dict[str, Any]:
        """DeepSpeed's own: one micro-batch a step, since what makes a step is said to it."""
        zero = {"stage": self.stage, "stage3_param_persistence_threshold": 0}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.clip,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
        }

    def model(self, *arguments: Any, **named: Any) -> Any:
        """As the distiller; with its terms made again of the tensors that the engine could see."""
        made = self.engine(*arguments, **named)
        return made if named.get("embed") else {name: Term(*parts) for name, parts in made.items()}

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self.engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def norm(self) -> Tensor:
        optimizer = self.engine.optimizer
        norms = optimizer._get_norm_groups() if self.stage == 3 else [optimizer.scaled_global_norm()]
        norm = torch.linalg.vector_norm(torch.stack([torch.as_tensor(each) for each in norms]).float())
        # it says -1 or inf of what is not finite
        broken = torch.stack([torch.as_tensor(each) < 0 for each in norms]).any()
        return torch.where(broken, torch.full_like(norm, torch.inf), norm)

    def move(self, finite: bool) -> None:
        if not finite:
            # of a gradient that is not finite the engine itself lets go; of a loss it does not know
            next(iter(self.engine.optimizer.averaged_gradients.values()))[0].fill_(torch.inf)
        self.engine.step()

    def student(self) -> nn.Module:
        if self.stage == 2:
            return self.distiller.student
        return Spread(self.distiller.student, self.engine.module, self.num_params)

    def full_state(self) -> Mapping[str, Tensor]:
        found = {name: value.detach().clone() for name, value in self.distiller.named_buffers()}
        for name, parameter in self.distiller.named_parameters(remove_duplicate=False):
            with self._together(parameter):
                whole = parameter.detach().clone()
            found[self._renamed.get(name, name)] = whole.reshape(()) if name in self._renamed else whole
        return found

    def _together(self, parameter: nn.Parameter) -> contextlib.AbstractContextManager[Any]:
        """In which a weight is whole."""
        if self.stage == 2:
            return contextlib.nullcontext()
        return deepspeed.zero.GatheredParameters([parameter])

    def release(self) -> None:
        fill(self.home, self.full_state(), self.accelerator.device)
        self.engine.destroy()
        del self.engine, self.distiller, self.optimizer
        self.accelerator.free_memory()

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        found, _ = self.engine.load_checkpoint(str(folder), tag=_TAG)
        if found is None:
            raise ValueError("it holds no weights of ZeRO")


class _Number(nn.Module):
    """A single number, such as a learnt temperature, kept as a vector of one: the engine sends the bytes of a
    weight, and a number cannot be seen as such."""

    def forward(self, kept: Tensor) -> Tensor:
        return kept.reshape(())

    def right_inverse(self, number: Tensor) -> Tensor:
        return number.reshape(1)


def _keep_numbers(distiller: Distiller) -> dict[str, str]:
    """Keeps every number so. Their names as they are from then on, and as they were."""
    renamed = {}
    for prefix, owner in list(distiller.named_modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if not parameter.dim():
                parametrize.register_parametrization(owner, name, _Number())
                above = f"{prefix}." if prefix else ""
                renamed[f"{above}parametrizations.{name}.original"] = above + name
    return renamed


def _flat(context: Callable[[], Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` in this context, its terms as tuples of tensors: the engine looks into those alone. Given
    something to call instead of a batch, it gives what that gives (`Distiller.enter`)."""

    def entered(first: Any, *arguments: Any, **named: Any) -> Any:
        if not isinstance(first, Batch):
            return first()
        with context():
            made = forward(first, *arguments, **named)
        if named.get("embed"):
            return made
        return {
            name: (term.sum,) if term.parts is None else (term.sum, term.parts) for name, term in made.items()
        }

    return entered


def _bring_together(distiller: Distiller) -> None:
    """Have ZeRO-3 bring together each unit's weights when it is called, and all others when the distiller is:
    by itself it does so module by module, and some weights are read outside the module that owns them.

    Its own leaf modules lose gradients where no input of theirs has one, as under teacher forcing.
    """
    units = units_of(distiller)
    apart = {id(parameter) for unit in units for parameter in unit.parameters()}
    for module in (distiller, *units):
        for parameter in module.parameters():
            if module is not distiller or id(parameter) not in apart:
                deepspeed.zero.register_external_parameter(module, parameter)
