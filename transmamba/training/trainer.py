"""The only training loop: stages, schedule, logging, evaluation, saving.

Everything a step needs follows from (seed, step): which items, how they are changed, dropout, the token
subset. So a resumed run needs weights and optimizer state alone, and continues bit for bit on the CPU.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..core.batch import Batch
from ..distillation.distiller import Distiller
from ..errors import UserError
from ..evaluation.cost import peak_memory_mb
from ..reporting.tracking import Tracker
from .checkpoint import (
    Progress,
    find_checkpoint,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    set_damaged_aside,
    sweep,
)
from .continuation import check_launch
from .interrupted import SIGNALS, Interrupted
from .log_window import Window
from .optimizer import compile_layers, make_optimizer, set_pace, set_trainable, set_training
from .stage import Stage, TrainerConfig
from .step import Stepper
from .strategies import strategy_of

if TYPE_CHECKING:
    from accelerate import Accelerator


class Trainer:
    """Runs stages one after the other on what `accelerator` was launched with.

    batches(start_step, num_steps, stage): this rank's micro-batches, resumable at any step
    change(batch, seed, stage): what the stage's task does to a batch on its device
    recordable: the stages whose `change` may be recorded with the step (`core.task.Task`)
    evaluate(student): metrics for the log, or None to leave evaluation out
    stop: asks the run to save and stop, from another thread
    kept: steps, counted over all stages, whose checkpoints are saved and stay
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainerConfig,
        folder: Path,
        tracker: Tracker,
        *,
        batches: Callable[[int, int, int], Iterator[Batch]],
        change: Callable[[Batch, int, int], Batch],
        recordable: Collection[int] = (),
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        seed: int = 0,
        stop: threading.Event | None = None,
        kept: Collection[int] = (),
    ) -> None:
        self.kept, self.recordable = frozenset(kept), frozenset(recordable)
        self.accelerator, self.config, self.tracker = accelerator, config, tracker
        self.checkpoints = folder / "checkpoints"
        self.batches, self.change, self.evaluate, self.seed = batches, change, evaluate, seed
        self.micro_batch, self.accumulation = config.division(accelerator.num_processes)
        self.strategy = strategy_of(accelerator, config)
        self.progress = Progress(
            processes=accelerator.num_processes, strategy=self.strategy.name, micro_batch=self.micro_batch
        )
        self.stop = stop or threading.Event()
        self._signal: signal.Signals | None = None
        self._process = os.getpid()
        self._measuring = False  # an evaluation, before which the run was saved
        self._resume_from: Path | None = None

    def resume(self, trunk: Path | None = None) -> bool:
        """Find the newest whole checkpoint, or begin at another run's; its weights are loaded when its stage
        is prepared.

        Raises UserError where this launch cannot continue it.
        """
        if self.accelerator.is_main_process:
            sweep(self.checkpoints)
            set_damaged_aside(self.checkpoints, self.tracker.say)
        self.accelerator.wait_for_everyone()
        found = find_checkpoint(self.checkpoints)
        if found is None and trunk is not None:
            found = trunk, read_checkpoint(trunk)
        if found is None:
            return False
        self._resume_from, saved = found
        here = self.progress
        if line := check_launch(saved, here, self.strategy, self.checkpoints.parent):
            self.tracker.say(line)
        self.progress = replace(
            saved, processes=here.processes, strategy=here.strategy, micro_batch=here.micro_batch
        )
        self.tracker.rewind(self.progress.metrics_offset)
        return True

    def run(self, make: Callable[[int], Distiller], stages: list[tuple[Stage, int]]) -> None:
        """Train every (stage, steps) that is not finished. `make(i)` builds stage i's distiller.

        Raises Interrupted after SIGTERM, Ctrl-C or `stop`, with the run saved (with `save_every: null` after
        a step alone, and not after the last); UserError when losses stay non-finite.
        """
        previous = self._listen()
        try:
            for index, (stage, steps) in enumerate(stages):
                if index >= self.progress.stage:
                    self._run_stage(index, stage, steps, make(index), len(stages))
            self._stop_if_asked()  # during the last evaluation, which no step follows
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _listen(self) -> dict[signal.Signals, Any]:
        """Signals ask for a stop; only the main thread may hear them, elsewhere there is `stop`."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._asked) for number in SIGNALS}

    def _asked(self, number: int, _: Any) -> None:
        if os.getpid() != self._process:
            return  # a worker that was forked: its parent ends it
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        self._signal = signal.Signals(number)
        self.stop.set()
        # several must stop together, and what is not saved before it is evaluated goes on
        if self._measuring and self.accelerator.num_processes == 1 and self.config.save_every is not None:
            self._measuring = False
            self.tracker.say(f"{self._signal.name}: stopping; the run is saved up to this evaluation")
            raise self._interrupted()
        self.tracker.say(f"{self._signal.name}: saving after this step")

    def _stop_if_asked(self) -> None:
        """Raises Interrupted on every rank where any was asked, if what is done is saved."""
        asked = torch.tensor(float(self.stop.is_set()), device=self.accelerator.device)
        if self.config.save_every is not None and self.accelerator.reduce(asked, "sum") > 0:
            raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        number = self._signal or signal.SIGTERM
        return Interrupted(number.name, SIGNALS[number])

    def _run_stage(self, index: int, stage: Stage, steps: int, distiller: Distiller, stages: int) -> None:
        set_trainable(distiller, stage)
        set_training(distiller, stage)
        distiller.to(self.accelerator.device)  # before the optimizer looks where the parameters are
        announced = self._announcement(index, stage, steps, distiller, stages)
        self.strategy.prepare(
            distiller,
            lambda spread: make_optimizer(spread, stage),
            clip=stage.clip,
            peek=lambda: self._peek(index, steps),
        )
        if self.config.compile:
            compile_layers(self.strategy.distiller.student)
        if self._resume_from is not None:
            load_checkpoint(self.strategy, self._resume_from)
            self._resume_from = None
        else:
            self.progress.stage, self.progress.stage_step, self.progress.window = index, 0, {}
        self.tracker.say(announced)
        stepper = self._stepper(index)
        stream = self.batches(self.progress.stage_step, steps, index)
        window = Window.restored(self.progress.window)
        if self.progress.evaluating:  # saved before it was evaluated
            self._evaluate(stage)
        while self.progress.stage_step < steps:
            stopping = self._step(stepper, stage, steps, stream, window)
            done = self.progress.stage_step == steps
            if done or self.progress.stage_step % self.config.log_every == 0:
                self._log(index, stage, window)
                window = Window()
            evaluating = self.evaluate is not None and _due(
                self.progress.stage_step, self.config.eval_every, done
            )
            # saved first: an evaluation may find an item that cannot be read
            every = self.config.save_every
            due = every is not None and (evaluating or _due(self.progress.stage_step, every, done))
            if stopping or due or self.progress.step in self.kept:
                self._save(window, evaluating)
            if stopping:
                raise self._interrupted()
            if evaluating:
                self._evaluate(stage)
        self.strategy.release()

    def _peek(self, index: int, steps: int) -> Batch:
        """A batch as stage `index`'s are, before the first is trained on."""
        batch = next(self.batches(0, steps, index)).to(self.accelerator.device)
        torch.manual_seed(self.seed)
        return self.change(batch, self.seed, index)

    def _stepper(self, index: int) -> Stepper:
        graphed = self.config.cuda_graphs and self.accelerator.device.type == "cuda"
        if graphed and self.accelerator.num_processes > 1:
            self.tracker.say("trainer.cuda_graphs: only for one process so far; going on without")
            graphed = False

        def change(batch: Batch, seed: int) -> Batch:
            return self.change(batch, seed, index)

        recordable = index in self.recordable
        return Stepper(self.strategy, seed=self.seed, change=change, graphed=graphed, recordable=recordable)

    def _announcement(self, index: int, stage: Stage, steps: int, distiller: Distiller, stages: int) -> str:
        """The numbers that follow from the recipe, before the stage is trained."""
        trained = sum(p.numel() for p in distiller.parameters() if p.requires_grad)
        every = sum(p.numel() for p in distiller.parameters())
        batch = self.config.global_batch
        return (
            f"stage {index + 1} of {stages}, {stage.name}: {steps:,} steps of {batch:,} samples "
            f"({steps * batch:,}), {self.accumulation} x {self.micro_batch} on each of "
            f"{self.accelerator.num_processes} processes; trains {trained:,} of {every:,} parameters"
        )

    def _step(
        self, stepper: Stepper, stage: Stage, steps: int, stream: Iterator[Batch], window: Window
    ) -> bool:
        """One optimizer step. Returns whether any rank was asked to stop."""
        started = time.perf_counter()
        micro = [next(stream) for _ in range(self.accumulation)]
        waited = time.perf_counter() - started
        student = self.strategy.distiller.student
        set_pace(stepper.optimizer, student, stage, self.progress.stage_step, steps)
        done = stepper.step(micro, self.progress.step, self.stop.is_set)
        if done.moved:
            self.progress.skipped = 0
        else:
            self._skipped(done.total, done.norm)
        self.progress.count(done.items)
        elapsed = time.perf_counter() - started
        self.progress.seconds += elapsed
        if done.moved:  # a skipped step's losses are said above; in the mean they would hide the others
            window.add(done.means, done.parts, done.total, done.items, elapsed, waited, done.norm)
        return done.stop

    def _skipped(self, loss: float, norm: float) -> None:
        """Said, counted, refused after too many."""
        self.progress.skipped += 1
        self.tracker.say(
            f"step {self.progress.step}: loss {loss:.3g}, gradient norm {norm:.3g}; step skipped"
        )
        if self.progress.skipped >= self.config.max_skipped:
            raise UserError(
                f"{self.progress.skipped} steps in a row had no finite loss or gradient (last at step "
                f"{self.progress.step}); lower stages.lr, or use trainer.precision=no"
            )

    def _save(self, window: Window, evaluating: bool) -> None:
        self.progress.metrics_offset = self.tracker.offset()
        self.progress.window = window.saved()
        self.progress.evaluating = evaluating
        save_checkpoint(self.strategy, self.checkpoints, self.progress, self.config.keep, self.kept)

    def _evaluate(self, stage: Stage) -> None:
        assert self.evaluate is not None, "asked by the caller"
        self._measuring = True
        found = self.evaluate(self.strategy.student())
        self._measuring = False
        row = self.progress.seen() | {f"eval/{key}": value for key, value in found.items()}
        self.tracker.log(row, self.progress.step)
        self.progress.evaluating = False
        set_training(self.strategy.distiller, stage)

    def _log(self, index: int, stage: Stage, window: Window) -> None:
        if not window.steps:
            return  # all of them were skipped, and said so
        row: dict[str, Any] = {"stage": index, "stage_name": stage.name, **self.progress.seen()}
        row["seconds"] = round(self.progress.seconds, 3)
        row |= window.means()
        for name, part in window.part_means().items():
            loss: Any = self.strategy.distiller.losses[name]
            for label, value in zip(loss.part_names(), part.flatten().tolist(), strict=True):
                row[f"{getattr(loss, 'logged', 'similarity')}/{name}/{label}"] = value
        row["lr"] = max(group["lr"] for group in self.strategy.optimizer.param_groups)
        row["grad_norm"] = window.grad_norm / window.steps
        row |= window.rates()
        row["data_wait"] = window.waited / window.seconds
        row["peak_memory_mb"] = peak_memory_mb(self.accelerator.device)
        self.tracker.log(row, self.progress.step)


def _due(step: int, every: int, done: bool) -> bool:
    return done or (every > 0 and step % every == 0)
