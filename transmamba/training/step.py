"""One optimizer step: the items of the whole step counted first, then every loss divided by its own count.

Two messages go between ranks: the counts before the backward; losses, parts and whether to stop after it.
Counts stay on the device and are inputs of a recorded step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.bank import Bank
from ..core.batch import Batch
from ..core.output import Term
from ..data.hashing import hash_of
from ..distillation.coupled import Coupling, couple
from ..distillation.distiller import weighted
from .cuda_graph import GraphedStep, refuse_waiting
from .seeding import seed_generators
from .strategies import Strategy


@dataclass
class Stepped:
    """What a step was: means of losses and of their per-layer parts over all ranks and micro-batches, without
    the losses that had no items; items by kind; whether the optimizer moved; whether any rank was asked to
    stop."""

    means: dict[str, float]
    parts: dict[str, Tensor]
    total: float
    norm: float
    items: dict[str, int]
    moved: bool
    stop: bool


def _never() -> bool:
    return False


class Stepper:
    """Takes optimizer steps with what a strategy has prepared.

    change: what the task does to a batch on its device, drawn from a seed
    graphed: record forward and backward of a micro-batch once, and replay them
    recordable: whether `change` may be recorded with them (`core.task.Task`)

    Raises UserError where a part of what is recorded waits for the device.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        seed: int,
        change: Callable[[Batch, int], Batch],
        graphed: bool = False,
        recordable: bool = False,
    ) -> None:
        self.strategy, self.accelerator = strategy, strategy.accelerator
        self.model, self.distiller, self.optimizer = strategy.model, strategy.distiller, strategy.optimizer
        self.seed, self.change, self.recordable = seed, change, recordable
        if graphed:
            refuse_waiting(self.distiller)
        self.graphed = GraphedStep(self._graph_body, self.distiller.parameters()) if graphed else None
        self._shape: tuple[Batch, list[str], list[str]] | None = None

    def step(self, micro: Sequence[Batch], number: int, asked: Callable[[], bool] = _never) -> Stepped:
        """Optimizer step `number` on this rank's micro-batches.

        asked: whether this rank was asked to stop; looked at as late as all ranks can still agree
        """
        device = self.accelerator.device
        counts, items = self._count(micro)
        drawn = self.distiller.draw_tokens(number, device)
        couplings = self._couple(micro, number) if self._divided(micro) else [{}] * len(micro)
        sums: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        for m, batch in enumerate(micro):
            batch = self._seeded(batch, number, m)
            last = m == len(micro) - 1
            with self.strategy.micro_batch(last):
                terms = self._forward_backward(batch, drawn, counts, couplings[m])
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.sum.float()
                if term.parts is not None:
                    parts[name] = parts.get(name, 0) + term.parts
        clipped = self.strategy.norm()
        # after the clipping: it waits for the GPU
        means, part_means, host_items, norm, stop = self._reduce(sums, parts, counts, items, clipped, asked())
        weights = self.distiller.weights
        total = sum(weights[name] * value for name, value in means.items())
        moved = self._apply(total, norm, part_means)
        return Stepped(means, part_means, total, norm, host_items, moved, stop)

    def _seeded(self, batch: Batch, number: int, m: int) -> Batch:
        """The batch on its device, changed unless that is recorded, with every generator where this
        micro-batch of this step has it, on whichever rank it is."""
        batch = batch.to(self.accelerator.device, non_blocking=True)
        # in the step, as the stream cuts it; the last key stays, so that one process draws what it always has
        place = m * self.accelerator.num_processes + self.accelerator.process_index
        seed = hash_of(self.seed, number, place, 0) >> 1
        seed_generators(seed, self.accelerator.device)
        return batch if self._records_change else self.change(batch, seed)

    @property
    def _records_change(self) -> bool:
        return self.graphed is not None and self.recordable

    def _changed(self, batch: Batch) -> Batch:
        """What `_seeded` left to a recording is done; it depends on no seed."""
        return self.change(batch, 0) if self._records_change else batch

    def _count(self, micro: Sequence[Batch]) -> tuple[Tensor, dict[str, int]]:
        """(items of each loss over all ranks, on the device; items of this rank by kind)."""
        mine = {kind: sum(batch.counts[kind] for batch in micro) for kind in micro[0].counts}
        kinds = self.distiller.items(micro[0])
        every = [*(mine[kinds[name]] for name in kinds), *mine.values()]
        counts = torch.tensor(every, dtype=torch.float64).to(self.accelerator.device, non_blocking=True)
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts, "sum")
        return counts, mine

    def _divided(self, micro: Sequence[Batch]) -> bool:
        """Whether a loss compares items that this step has in several places: in one batch it sees all."""
        several = len(micro) > 1 or self.accelerator.num_processes > 1
        return several and bool(self.distiller.coupled)

    def _couple(self, micro: Sequence[Batch], number: int) -> list[dict[str, Coupling]]:
        """Each coupled loss of the whole step, as each of this rank's micro-batches takes part in it."""
        banks: list[Bank] = []
        scalars: Bank = {}
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        for m, batch in enumerate(micro):
            with torch.no_grad():
                mine, scalars = self.model(self._changed(self._seeded(batch, number, m)), embed=True)
            # every rank's rows of this micro-batch, in the order of ranks
            every = {name: self.accelerator.gather(x).chunk(world) for name, x in mine.items()}
            banks += [{name: parts[r] for name, parts in every.items()} for r in range(world)]
        places = [m * world + rank for m in range(len(micro))]
        found: list[dict[str, Coupling]] = [{} for _ in micro]
        for name, loss in self.distiller.coupled.items():
            shares = couple(loss, banks, scalars, places, len(banks), first=rank == 0)
            for m, coupling in enumerate(shares):
                found[m][name] = coupling
        return found

    def _forward_backward(
        self, batch: Batch, drawn: Mapping[str, Tensor], counts: Tensor, couplings: Mapping[str, Coupling]
    ) -> dict[str, Term]:
        """A micro-batch's terms, its gradients added."""
        if self.graphed is None or couplings:
            return self._backward(self._changed(batch), drawn, counts, couplings)
        tensors = batch.tensors()
        self._shape = batch, list(tensors), list(drawn)
        shape = (tuple(tensors), tuple(drawn))
        return self.graphed(*tensors.values(), *drawn.values(), counts, constants=shape)

    def _graph_body(self, *inputs: Any) -> dict[str, Term]:
        """The same of tensors alone: a batch's, the drawn tokens, the counts; then what no tensor says."""
        assert self._shape is not None, "set by the call"
        like, names, streams = self._shape
        *tensors, counts, _ = inputs
        batch = like.with_tensors(dict(zip(names, tensors, strict=False)))
        drawn = dict(zip(streams, tensors[len(names) :], strict=True))
        return self._backward(self._changed(batch), drawn, counts, {})

    def _backward(
        self, batch: Batch, drawn: Mapping[str, Tensor], counts: Tensor, couplings: Mapping[str, Coupling]
    ) -> dict[str, Term]:
        terms = self.model(batch, drawn, couplings)
        loss = weighted(terms, self.distiller.weights, counts) * self.accelerator.num_processes
        self.strategy.backward(loss)
        return {name: term.detached() for name, term in terms.items()}

    def _reduce(
        self,
        sums: dict[str, Tensor],
        parts: dict[str, Tensor],
        counts: Tensor,
        items: Mapping[str, int],
        norm: Tensor,
        stop: bool,
    ) -> tuple[dict[str, float], dict[str, Tensor], dict[str, int], float, bool]:
        """Sums of all ranks as means, and whether any was asked to stop, in one message between ranks; with
        the counts and the gradients' norm one message to the host, the step's only wait."""
        flat = [torch.stack(list(sums.values())).double(), *(p.flatten().double() for p in parts.values())]
        # filled where it lies: a number of the host's that is copied there waits for the GPU
        flat.append(torch.full((1,), float(stop), dtype=torch.float64, device=counts.device))
        if self.accelerator.num_processes > 1:
            flat = [self.accelerator.reduce(torch.cat(flat), "sum")]
        flat += [counts, norm.detach().to(counts).reshape(1)]
        host = torch.cat(flat).cpu()
        flat_size = len(host) - len(counts) - 1
        told, counted = host[:flat_size], host[flat_size:-1].tolist()
        by_loss = dict(zip(self.distiller.weights, counted, strict=False))
        said = dict(zip(sums, told.tolist(), strict=False))
        means = {name: value / by_loss[name] for name, value in said.items() if by_loss[name]}
        part_means, start = {}, len(sums)
        for name, part in parts.items():
            mean = told[start : start + part.numel()].float().view(part.shape)
            if by_loss[name]:
                part_means[name] = mean / by_loss[name]
            start += part.numel()
        every = dict(zip(items, map(int, counted[len(by_loss) :]), strict=True))
        return means, part_means, every, float(host[-1]), bool(told[-1] > 0)

    def _apply(self, total: float, norm: float, parts: dict[str, Tensor]) -> bool:
        """Move, unless the loss or the gradient is not finite. Returns whether it moved."""
        moved = math.isfinite(total) and math.isfinite(norm)
        self.strategy.move(moved)
        if moved:
            self.distiller.observe(parts)
        return moved
