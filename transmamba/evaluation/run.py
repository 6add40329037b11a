"""One pass over a split for all models at once: `measure`, and the models as evaluators may use them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.output import Logits, Output
from ..core.task import Evaluator, Outcome, Pass, Runner
from ..core.tower import run_plain
from ..errors import UserError
from .cost import Clock, Cost, Timed
from .measured import Measured

T = TypeVar("T")


class ModelRunner:
    """A model in evaluation mode (restored afterwards), in the run's precision, on its device, on the clock.

    autocast: makes the context that the model computes in
    kind:     how it is called. A teacher: `model(inputs, {})`. A student: `model.run(inputs, {})`, or, where
        it has no `run` (any image classifier of timm or Hugging Face), `model(image)`

    Used in a `with`, it changes the model's mode once for all that is done there, and its clock starts anew.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        autocast: Callable[[], Any] = contextlib.nullcontext,
        *,
        kind: Literal["student", "teacher"] = "student",
    ) -> None:
        self.model, self.device, self.autocast, self.kind = model, device, autocast, kind
        self.trouble: str | None = None
        self.clock = Clock(device)
        self._count = 0
        self._modes: list[dict[nn.Module, bool]] = []

    @property
    def num_params(self) -> int | None:
        """How many parameters the model has; None where it does not say."""
        told: int | None = getattr(self.model, "num_params", None)
        if told is None and isinstance(self.model, nn.Module):
            return sum(parameter.numel() for parameter in self.model.parameters())
        return told

    def logits(self, batch: Batch) -> Logits:
        """Raises UserError where the model gives none."""
        timed = self._begin(batch)
        output = self._work(timed, lambda: self._output(batch))
        if output.logits is None:
            raise UserError(f"{type(self.model).__name__} gives no logits; this evaluation needs them")
        head = output.logits.head

        def finite_head(hidden: Tensor) -> Tensor:
            return self._checked(batch, "logits", self._work(timed, lambda: head(hidden)))

        return Logits(output.logits.hidden, finite_head)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        output = self._work(self._begin(batch), lambda: self._output(batch))
        return {
            tower: self._checked(batch, f"{tower} embeddings", embedding)
            for tower, embedding in output.embeddings.items()
        }

    def generate(self, batch: Batch, limit: int) -> Tensor:
        """Not on the clock, which times a batch's one pass. Raises UserError where the model does not
        write."""
        write = getattr(self.model, "generate", None)
        if write is None:
            raise UserError(f"{type(self.model).__name__} cannot generate; this evaluation needs it")
        self._count += len(batch) > 0
        return self._prepared(lambda: write(self._inputs(batch), limit))

    def __enter__(self) -> ModelRunner:
        if not self._modes:
            self.clock = Clock(self.device)
            self.start_pass()
        self._evaluating()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def start_pass(self) -> None:
        """Count batches from 1 again, and forget what was wrong with earlier ones."""
        self.trouble, self._count = None, 0

    def _evaluating(self) -> None:
        modules = self.model.modules() if isinstance(self.model, nn.Module) else ()
        # each module's own: parts of a model that is trained may rest in evaluation mode
        self._modes.append({module: module.training for module in modules})
        if isinstance(self.model, nn.Module):
            self.model.eval()

    def _restore(self) -> None:
        for module, training in self._modes.pop().items():
            module.training = training

    def _begin(self, batch: Batch) -> Timed:
        self._count += len(batch) > 0
        return self.clock.batch(len(batch))

    def _work(self, timed: Timed, work: Callable[[], T]) -> T:
        return self.clock.run(timed, lambda: self._prepared(work))

    def _prepared(self, work: Callable[[], T]) -> T:
        """In evaluation mode, without gradients, in the run's precision."""
        outside = not self._modes
        if outside:
            self._evaluating()
        try:
            with torch.no_grad(), self.autocast():
                return work()
        finally:
            if outside:
                self._restore()

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.inputs.items()}

    def _output(self, batch: Batch) -> Output:
        inputs = self._inputs(batch)
        if self.kind == "teacher":
            return self.model(inputs, {})
        if hasattr(self.model, "run"):
            return self.model.run(inputs, {})
        return run_plain(self.model, inputs)

    def _checked(self, batch: Batch, what: str, made: Tensor) -> Tensor:
        """The same; the first batch in which something is not finite is remembered."""
        if self.trouble is None and not torch.isfinite(made).all():
            items = "texts that belong to no item"  # such as descriptions of classes
            if len(batch):
                items = f"items {int(batch.index.min())} to {int(batch.index.max())}"
            self.trouble = f"{what} are not finite in batch {self._count} ({items})"
        return made


def alone(mine: T) -> list[T]:
    """What all processes have where there is one."""
    return [mine]


def measure(
    evaluators: Sequence[Evaluator],
    runners: Mapping[str, Runner],
    passing: Pass,
    gather: Callable[[Any], list[Any]] = alone,
    *,
    say: Callable[[str], None] | None = None,
    watch: Callable[[Iterator[Batch], str], Iterator[Batch]] | None = None,
) -> Measured:
    """Go through each evaluator's batches once, with all models. All processes return the same.

    gather: what each process gives it, of all processes in the order of their ranks
    say:    told in a line of a model whose outputs are not finite; its metrics are then nan. Without it, that
        is a UserError on every process
    watch:  shows the pass to the user: (batches, title) to the same batches
    """
    with contextlib.ExitStack() as stack:
        for runner in runners.values():
            if isinstance(runner, ModelRunner):
                stack.enter_context(runner)
        outcomes = [_pass(evaluator, runners, passing, gather, say, watch) for evaluator in evaluators]
        mine = {
            name: runner.clock.cost() for name, runner in runners.items() if isinstance(runner, ModelRunner)
        }
    shares = gather(mine)
    costs = {name: Cost.of_all([share[name] for share in shares]) for name in mine}
    params = {name: getattr(runner, "num_params", None) for name, runner in runners.items()}
    known = {name: count for name, count in params.items() if count is not None}
    return Measured(tuple(evaluators), tuple(outcomes), costs, known)


def _pass(
    evaluator: Evaluator,
    runners: Mapping[str, Runner],
    passing: Pass,
    gather: Callable[[Any], list[Any]],
    say: Callable[[str], None] | None,
    watch: Callable[[Iterator[Batch], str], Iterator[Batch]] | None,
) -> dict[str, Outcome]:
    """One evaluator's outcomes."""
    for runner in runners.values():
        if isinstance(runner, ModelRunner):
            runner.start_pass()
    batches, tally = evaluator.batches(passing), evaluator.start()
    for batch in batches if watch is None else watch(batches, f"evaluating on {evaluator.split}"):
        evaluator.add(tally, runners, batch)
        # one process says so at once; of several, all must reach the gathering, or the others wait for ever
        if passing.world == 1 and say is None:
            _refuse(_troubles(runners), evaluator.split)
    shares = gather((tally, _troubles(runners)))
    troubles = {name: text for _, found in reversed(shares) for name, text in found.items()}
    if say is None:
        _refuse(troubles, evaluator.split)
    elif passing.rank == 0:
        for name, text in troubles.items():
            say(f"{name}: {text} of the {evaluator.split} split; its metrics there are nan")
    return evaluator.finish([tally for tally, _ in shares])


def _troubles(runners: Mapping[str, Runner]) -> dict[str, str]:
    found = {name: getattr(runner, "trouble", None) for name, runner in runners.items()}
    return {name: text for name, text in found.items() if text is not None}


def _refuse(troubles: Mapping[str, str], split: str) -> None:
    for name, text in troubles.items():
        raise UserError(
            f"{name}: {text} of the {split} split; the weights are damaged, or the precision is too low for "
            "them (fp16 overflows where bf16 and float32 do not)"
        )
