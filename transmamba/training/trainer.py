"""The only training loop: stages, accumulation, schedule, logging, evaluation, saving.

Everything a step needs follows from (seed, step): which images, how they are changed, dropout, the token
subset. So a resumed run needs weights and optimizer state alone, and continues bit for bit on the CPU.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.output import Term
from ..data.hashing import hash64
from ..distillation.distiller import Distiller
from ..errors import UserError
from ..evaluation.classification import peak_memory_mb
from ..reporting.tracking import Tracker
from ..runs.recipe import Stage, TrainerConfig
from .checkpoint import Progress, list_checkpoints, load_checkpoint, read_progress, save_checkpoint, sweep
from .cuda_graph import GraphedStep
from .log_window import Window
from .optimizer import learning_rate, make_optimizer, set_trainable, set_training

if TYPE_CHECKING:
    from accelerate import Accelerator


class Interrupted(Exception):
    """SIGTERM came; the run was saved and can be resumed."""


class Trainer:
    """Runs stages one after the other on what `accelerator` was launched with.

    batches(start_step, num_steps, stage): this rank's micro-batches, resumable at any step
    evaluate(student): metrics for the log, or None to leave evaluation out
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainerConfig,
        folder: Path,
        tracker: Tracker,
        *,
        batches: Callable[[int, int, int], Iterator[Any]],
        mix: Callable[[Any, int], Any] | None = None,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        seed: int = 0,
    ) -> None:
        self.accelerator, self.config, self.tracker = accelerator, config, tracker
        self.checkpoints = folder / "checkpoints"
        self.batches, self.mix, self.evaluate, self.seed = batches, mix, evaluate, seed
        self.global_batch = config.batch_size * config.accumulation * accelerator.num_processes
        self.progress = Progress(processes=accelerator.num_processes)
        self._stop = False
        self._resume_from: Path | None = None

    def resume(self) -> bool:
        """Find the newest whole checkpoint; its weights are loaded when its stage is prepared."""
        if self.accelerator.is_main_process:
            sweep(self.checkpoints)
        found = list_checkpoints(self.checkpoints)
        if not found:
            return False
        self._resume_from = found[-1]
        self.progress = read_progress(found[-1])
        if self.progress.processes != self.accelerator.num_processes:
            raise UserError(
                f"{self.checkpoints.parent} was started on {self.progress.processes} processes, this is "
                f"{self.accelerator.num_processes}: its steps would see other images; launch as many again, "
                "or --overwrite"
            )
        self.tracker.rewind(self.progress.metrics_offset)
        return True

    def run(self, make: Callable[[int], Distiller], stages: list[tuple[Stage, int]]) -> None:
        """Train every (stage, steps) that is not finished. `make(i)` builds stage i's distiller.

        Raises Interrupted after SIGTERM, with the run saved; UserError when losses stay non-finite.
        """
        previous = signal.signal(signal.SIGTERM, self._ask_to_stop)
        try:
            for index, (stage, steps) in enumerate(stages):
                if index >= self.progress.stage:
                    self._run_stage(index, stage, steps, make(index))
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _ask_to_stop(self, *_: Any) -> None:
        self._stop = True

    def _run_stage(self, index: int, stage: Stage, steps: int, distiller: Distiller) -> None:
        set_trainable(distiller, stage)
        set_training(distiller, stage)
        distiller.to(self.accelerator.device)  # before the optimizer looks where the parameters are
        optimizer = make_optimizer(distiller, stage)
        model, optimizer = self.accelerator.prepare(distiller, optimizer)
        if self._resume_from is not None:
            load_checkpoint(self.accelerator, self._resume_from)
            self._resume_from = None
        else:
            self.progress.stage, self.progress.stage_step, self.progress.window = index, 0, {}
        self.tracker.say(f"stage {index + 1} {stage.name}: {steps} steps of {self.global_batch} images")
        stream = self.batches(self.progress.stage_step, steps, index)
        window = Window.restored(self.progress.window)
        forward_backward = self._forward_backward(model, distiller)
        while self.progress.stage_step < steps:
            self._step(model, distiller, optimizer, forward_backward, stage, steps, stream, window)
            done = self.progress.stage_step == steps
            if done or self.progress.stage_step % self.config.log_every == 0:
                self._log(distiller, optimizer, index, stage, window)
                window = Window()
            if self.evaluate and _due(self.progress.stage_step, self.config.eval_every, done):
                row = {f"eval/{key}": value for key, value in self.evaluate(distiller.student).items()}
                self.tracker.log({"samples": self.progress.samples, **row}, self.progress.step)
                set_training(distiller, stage)
            stopping = self._should_stop()
            if stopping or _due(self.progress.stage_step, self.config.save_every, done):
                self.progress.metrics_offset = self.tracker.offset()
                self.progress.window = window.saved()
                save_checkpoint(self.accelerator, self.checkpoints, self.progress, self.config.keep)
            if stopping:
                raise Interrupted
        self.accelerator.free_memory()

    def _step(
        self,
        model: nn.Module,
        distiller: Distiller,
        optimizer: Any,
        forward_backward: Callable[..., dict[str, Term]],
        stage: Stage,
        steps: int,
        stream: Iterator[Any],
        window: Window,
    ) -> None:
        """One optimizer step: count the items of the whole step, then divide every loss by that count."""
        started = time.perf_counter()
        micro = [
            next(stream).to(self.accelerator.device, non_blocking=True)
            for _ in range(self.config.accumulation)
        ]
        waited = time.perf_counter() - started
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, self.progress.stage_step, steps)
        counts = self._global_counts(distiller, micro)
        sums: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        drawn = distiller.draw_tokens(self.progress.step, self.accelerator.device)
        for m, batch in enumerate(micro):
            seed = int(hash64(self.seed, self.progress.step, m, self.accelerator.process_index)[0] >> 1)
            torch.manual_seed(seed)
            if self.mix is not None:
                batch = self.mix(batch, seed)
            last = m == len(micro) - 1
            with exchange(self.accelerator, model, last):
                terms = forward_backward(batch.images, batch.targets, drawn, constants=tuple(counts.items()))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.sum.float()
                if term.parts is not None:
                    parts[name] = parts.get(name, 0) + term.parts
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        norm = self.accelerator.clip_grad_norm_(trained, stage.clip if stage.clip > 0 else math.inf)
        means, part_means = self._reduce(sums, parts, counts)  # after the clipping: it waits for the GPU
        total = sum(distiller.weights[name] * value for name, value in means.items())
        stepped = self._apply(optimizer, total, float(norm), distiller, part_means)
        self.progress.step += 1
        self.progress.stage_step += 1
        self.progress.samples += self.global_batch
        elapsed = time.perf_counter() - started
        self.progress.seconds += elapsed
        if stepped:  # a skipped step's losses are said above; in the mean they would hide the others
            window.add(means, part_means, total, self.global_batch, elapsed, waited, float(norm))

    def _forward_backward(self, model: nn.Module, distiller: Distiller) -> Callable[..., dict[str, Term]]:
        """f(images, targets, drawn, constants=counts): a micro-batch's terms, its gradients added."""

        def run(
            images: Tensor, targets: Tensor, drawn: Tensor | None, constants: tuple[tuple[str, float], ...]
        ) -> dict[str, Term]:
            terms = model(images, targets, drawn=drawn)
            loss = weighted(terms, distiller.weights, dict(constants)) * self.accelerator.num_processes
            self.accelerator.backward(loss)
            return {name: term.detached() for name, term in terms.items()}

        if not self.config.cuda_graphs or not self._on_gpu():
            return run
        if self.accelerator.num_processes > 1:
            self.tracker.say("trainer.cuda_graphs: only for one process so far; going on without")
            return run
        return GraphedStep(run, distiller.parameters())

    def _on_gpu(self) -> bool:
        return self.accelerator.device.type == "cuda"

    def _apply(
        self, optimizer: Any, loss: float, norm: float, distiller: Distiller, parts: dict[str, Tensor]
    ) -> bool:
        """Step, unless the loss or the gradient is not finite: skipped, counted, refused after too many.
        Returns whether it stepped."""
        stepped = math.isfinite(loss) and math.isfinite(norm)
        if stepped:
            optimizer.step()
            distiller.observe(parts)
            self.progress.skipped = 0
        else:
            self.progress.skipped += 1
            self.tracker.say(
                f"step {self.progress.step}: loss {loss:.3g}, gradient norm {norm:.3g}; step skipped"
            )
            if self.config.precision == "fp16":
                optimizer.step()  # the scaler itself refuses the step, and halves its scale
            if self.progress.skipped >= self.config.max_skipped:
                raise UserError(
                    f"{self.progress.skipped} steps in a row had no finite loss or gradient (last at step "
                    f"{self.progress.step}); lower stages.lr, or use trainer.precision=no"
                )
        optimizer.zero_grad(set_to_none=True)
        return stepped

    def _global_counts(self, distiller: Distiller, micro: list[Any]) -> dict[str, float]:
        names = list(distiller.weights)
        totals = torch.zeros(len(names), dtype=torch.float64)
        for batch in micro:
            counts = distiller.counts(batch.targets)
            totals += torch.tensor([counts[name] for name in names], dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(totals.to(self.accelerator.device).float(), "sum").cpu()
        return dict(zip(names, totals.tolist(), strict=True))

    def _reduce(
        self, sums: dict[str, Tensor], parts: dict[str, Tensor], counts: dict[str, float]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Means of every loss and of every per-layer part over all ranks and micro-batches, in one
        message."""
        flat = torch.cat([torch.stack(list(sums.values())), *(p.flatten() for p in parts.values())])
        if self.accelerator.num_processes > 1:
            flat = self.accelerator.reduce(flat, "sum")
        flat = flat.cpu()
        means = {name: flat[i].item() / counts[name] for i, name in enumerate(sums)}
        part_means, start = {}, len(sums)
        for name, part in parts.items():
            part_means[name] = flat[start : start + part.numel()].view(part.shape) / counts[name]
            start += part.numel()
        return means, part_means

    def _log(self, distiller: Distiller, optimizer: Any, index: int, stage: Stage, window: Window) -> None:
        if not window.steps:
            return  # all of them were skipped, and said so
        row: dict[str, Any] = {"stage": index, "stage_name": stage.name, "samples": self.progress.samples}
        row["seconds"] = round(self.progress.seconds, 3)
        row |= {key: value / window.steps for key, value in window.sums.items()}
        for name, part in window.parts.items():
            labels = distiller.losses[name].part_names()  # type: ignore[operator]
            for label, value in zip(labels, (part / window.steps).flatten().tolist(), strict=True):
                row[f"similarity/{name}/{label}"] = value
        row["lr"] = max(group["lr"] for group in optimizer.param_groups)
        row["grad_norm"] = window.grad_norm / window.steps
        row["samples_per_second"] = window.samples / window.seconds
        row["data_wait"] = window.waited / window.seconds
        row["peak_memory_mb"] = peak_memory_mb(self.accelerator.device)
        self.tracker.log(row, self.progress.step)

    def _should_stop(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self._stop
        flag = torch.tensor(float(self._stop), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)


def exchange(accelerator: Accelerator, model: nn.Module, last: bool) -> Any:
    """Gradients are exchanged between ranks only with the last micro-batch of a step."""
    return contextlib.nullcontext() if last else accelerator.no_sync(model)


def weighted(terms: dict[str, Term], weights: dict[str, float], counts: dict[str, float]) -> Tensor:
    """The loss of a micro-batch: each sum over the count of the whole step, so that losses never average."""
    return torch.stack([weights[name] * term.sum / counts[name] for name, term in terms.items()]).sum()


def _due(step: int, every: int, done: bool) -> bool:
    return done or (every > 0 and step % every == 0)
