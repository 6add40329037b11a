"""The distiller: a student, the projections to its teacher, and the losses between them, as one module.

Everything trainable is inside, so that DDP, DeepSpeed and FSDP see one forward; the teacher is held, not
owned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.bank import bank_of
from ..core.batch import Batch
from ..core.output import Captures, Context, Output, Stream, Term, union
from ..core.tower import Student, run_plain
from ..errors import UserError
from ..teachers.load import adapt_teacher
from ..teachers.teacher import Teacher
from .aligner import Aligner
from .build import build_losses, geometry_of, make_aligners, measure_streams
from .compared import check_targets, without_teacher
from .coupled import Coupling
from .signals import Loss, Signals

T = TypeVar("T")

DEFAULT_LOSSES = ("cross_entropy", "kl", "bidirectional")


class Distiller(nn.Module):
    """`forward(batch, drawn)` gives every loss as a `Term`; `loss(batch, step)` their weighted mean.

    student: a `Student`; for losses on logits alone, any module from its one input to logits
    teacher: a `Teacher`, or a timm / transformers ViT the user holds
    losses:  names, or configurations such as `KL(temperature=4)`
    kept:    by stream, the coordinates that subcloning chose (`Selection.residual`), where the projections
        start
    token_fraction: share of the matched tokens that feature losses look at, drawn anew each step
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module | None = None,
        losses: Sequence[Any] = DEFAULT_LOSSES,
        *,
        aligners: nn.ModuleDict | None = None,
        kept: Mapping[str, Tensor] | None = None,
        token_fraction: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student = student
        # a Teacher is no module, so nothing registers it: it stays out of DDP, optimizers and checkpoints
        self.teacher = adapt_teacher(teacher) if isinstance(teacher, nn.Module) else teacher
        self.token_fraction, self.seed = token_fraction, seed
        self.apart = False  # whether a layer's weights are there only while it is called (FSDP2, ZeRO)
        geometry = geometry_of(student, self.teacher)
        self.losses = nn.ModuleDict(build_losses(losses, geometry, student))
        needy = [name for name, loss in self._losses().items() if loss.needs_teacher]
        if self.teacher is None and needy:
            raise UserError(
                f"losses {', '.join(needy)} need a teacher; give one, or use {without_teacher(student)} alone"
            )
        if self.teacher is not None:
            for name, loss in self._losses().items():
                self.teacher.check_reads(name, loss.teacher_captures())
        if aligners is None and self.teacher is not None and geometry is not None:
            aligners = make_aligners(student, self.teacher, self._losses().values(), kept)
        self.aligners = aligners if aligners is not None else nn.ModuleDict()
        if token_fraction < 1 and any(aligner.num_tokens is None for aligner in self._aligners().values()):
            raise UserError(
                f"token_fraction is {token_fraction}, but rows of text have no tokens in common; write 1"
            )

    def _losses(self) -> dict[str, Loss]:
        return dict(self.losses.items())  # type: ignore[arg-type]

    def _aligners(self) -> dict[str, Aligner]:
        return dict(self.aligners.items())  # type: ignore[arg-type]

    @property
    def weights(self) -> dict[str, float]:
        return {name: loss.weight for name, loss in self._losses().items()}

    @property
    def teacher_forced(self) -> bool:
        """Whether no loss asks for an end-to-end pass of the student."""
        return all(loss.teacher_forced for loss in self._losses().values())

    @property
    def reads_logits(self) -> bool:
        return any(loss.reads_logits for loss in self._losses().values())

    @property
    def coupled(self) -> dict[str, Loss]:
        """Losses that compare every item with all others of the step."""
        return {name: loss for name, loss in self._losses().items() if loss.coupled}

    def used_projections(self) -> set[tuple[str, int]]:
        """(stream, student layer) of every projection that a loss reads."""
        return {(loss.stream, k) for loss in self._losses().values() for k in loss.projections()}

    def items(self, batch: Batch) -> dict[str, str]:
        """What each loss counts in such a batch, from the batch alone."""
        return {name: loss.item(batch) for name, loss in self._losses().items()}

    def forward(
        self,
        batch: Batch,
        drawn: Mapping[str, Tensor] | None = None,
        couplings: Mapping[str, Coupling] | None = None,
        *,
        embed: bool = False,
    ) -> Any:
        """Every loss as a Term, by name.

        drawn:     by stream, the token subset that feature losses look at
        couplings: of coupled losses, their gradients over the whole step; one without is this batch's alone
        embed:     only the embeddings that coupled losses read, and the numbers that go with them
        """
        if not isinstance(batch, Batch):
            raise _no_batch(batch)
        losses = self._losses()
        drawn = {} if drawn is None else drawn
        if embed:
            losses = self.coupled
        for name, loss in losses.items():
            check_targets(name, loss, batch.targets)
        teacher = self._run_teacher(batch, losses.values())
        forced = {name: loss for name, loss in losses.items() if loss.teacher_forced}
        free = {name: loss for name, loss in losses.items() if not loss.teacher_forced}
        terms = {name: self._nothing(loss) for name, loss in losses.items() if _lacks(loss, teacher)}
        if free:
            student = self._run_student(batch, free.values(), drawn)
            if embed:
                return bank_of(student, teacher, batch)
            signals = Signals(student, teacher, batch, self._aligners(), drawn)
            for name, loss in free.items():
                if name in terms:
                    continue
                coupling = (couplings or {}).get(name)
                terms[name] = loss(signals) if coupling is None else coupling.term(signals)
        if forced:
            assert teacher is not None, "checked in __init__"
            student, blank = self._run_mixers(teacher, batch, forced.values())
            signals = Signals(student, teacher, batch, self._aligners())
            for name, loss in forced.items():
                lacking = terms.get(name)
                terms[name] = loss(signals) if lacking is None else replace(lacking, sum=lacking.sum + blank)
        return {name: terms[name] for name in losses}

    def loss(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, float]]:
        """The weighted mean loss and each term as a number, for a loop of your own on one process. A loss
        that has no items in the batch contributes nothing and is left out.

        Adaptive weights are updated here; under several processes use the trainer, which adds up all ranks.
        """
        if not isinstance(batch, Batch):
            raise _no_batch(batch)
        terms = self(batch, self.draw_tokens(step, batch.index.device))
        counts = {name: batch.counts[item] for name, item in self.items(batch).items()}
        amounts = torch.tensor([float(counts[name]) for name in self.weights], dtype=torch.float64)
        total = weighted(terms, self.weights, amounts.to(batch.index.device))
        counted = {name: term for name, term in terms.items() if counts[name]}
        self.observe(
            {name: term.parts / counts[name] for name, term in counted.items() if term.parts is not None}
        )
        return total, {name: float(term.sum.detach()) / counts[name] for name, term in counted.items()}

    @torch.no_grad()
    def observe(self, parts: Mapping[str, Tensor]) -> None:
        """Give each loss the per-layer means of the step just taken (over all ranks and micro-batches)."""
        for name, mean in parts.items():
            self._losses()[name].observe(mean)

    def measure(self, batches: Sequence[Batch]) -> None:
        """Take the teacher's statistics for losses that standardise, from some training data."""
        assert self.teacher is not None, "losses that standardise need one"
        measure_streams(self.aligners, self.teacher, batches)

    def draw_tokens(self, step: int, device: torch.device) -> dict[str, Tensor]:
        """By stream, positions among the matched tokens, the same for every row, rank and micro-batch of a
        step; nothing where all are looked at."""
        if self.token_fraction >= 1:
            return {}
        drawn = {}
        for stream, aligner in self._aligners().items():
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            total = aligner.num_tokens
            assert total is not None, "checked in __init__"
            chosen = torch.randperm(total, generator=generator)[: max(1, round(total * self.token_fraction))]
            drawn[stream] = chosen.sort().values.to(device)
        return drawn

    def _nothing(self, loss: Loss) -> Term:
        """0, of all that is trained: so that every rank has the same gradients where one has no pictures."""
        trained = (p for p in self.parameters() if p.requires_grad and not hasattr(p, "full_tensor"))
        total = 0.0 * sum((p.sum() for p in trained), torch.zeros(()))
        parts = loss.no_parts()
        return Term(total, None if parts is None else parts.to(total.device))

    def _run_teacher(self, batch: Batch, losses: Iterable[Loss]) -> Output | None:
        reading = [loss for loss in losses if loss.needs_teacher]
        if self.teacher is None or not reading:
            return None
        return self.teacher.answer(batch, union([loss.teacher_captures() for loss in reading]))

    def _run_student(self, batch: Batch, losses: Iterable[Loss], drawn: Mapping[str, Tensor]) -> Output:
        if not isinstance(self.student, Student):
            return run_plain(self.student, batch.inputs)
        captures = self._on_drawn(union([loss.student_captures() for loss in losses]), drawn)
        if self.apart:
            captures = {stream: replace(capture, apart=True) for stream, capture in captures.items()}
        return self.student.run(batch.inputs, captures)

    def _on_drawn(self, captures: Captures, drawn: Mapping[str, Tensor]) -> Captures:
        aligners = self._aligners()
        return {
            stream: capture.on(aligners[stream].student_positions(drawn[stream]))
            if stream in drawn
            else capture
            for stream, capture in captures.items()
        }

    def enter(self, work: Callable[[], T]) -> T:
        """What `work` gives, done as a forward pass of this module is: a strategy that spreads the weights
        brings them together for it, as for evaluation."""
        return work()

    def _run_mixers(self, teacher: Output, batch: Batch, losses: Iterable[Loss]) -> tuple[Output, Tensor]:
        """Every mixer that a loss asks for, on the teacher's own input of its layer; and 0 of those whose
        stream the batch lacks, on nothing: a strategy that spreads weights brings them on all ranks at
        once."""
        assert isinstance(self.student, Student) and self.teacher is not None
        output, blank = Output(), torch.zeros((), device=batch.index.device)
        own = next(self.student.parameters()).dtype
        for name, capture in union([loss.student_captures() for loss in losses]).items():
            tower, aligner = self.student.towers[name], self._aligners()[name]
            if name not in teacher.streams:
                layout: Any = tower.layout
                none = torch.zeros(1, layout.length, tower.width, dtype=own, device=batch.index.device)
                for k in sorted(capture.mixers):
                    blank = blank + 0.0 * tower.mixer(k, none, Context(), capture)[0].sum()
                continue
            taught = self.teacher.view.towers[name]
            sources, context = tower.sources(taught.kinds), Context.of(batch.inputs, taught.embedding.reads)
            stream = output.streams[name] = Stream(tower.layout, teacher.streams[name].mask)
            for k in sorted(capture.mixers):
                hidden = aligner.to_student(teacher.streams[name].mixers[sources[k]]["input"]).to(own)
                made, parts = tower.mixer(k, hidden, context, capture)
                stream.mixers[k] = {"output": made, **parts}
        return output, blank


def _lacks(loss: Loss, teacher: Output | None) -> bool:
    """Whether a batch has nothing that the loss compares: one of texts alone has no pictures."""
    return bool(loss.stream) and teacher is not None and loss.stream not in teacher.streams


def weighted(terms: Mapping[str, Term], weights: Mapping[str, float], counts: Tensor) -> Tensor:
    """The loss of a micro-batch: each sum over the count of the whole step, so that losses never average. A
    loss that has no items in the step contributes zero times its graph, so that every rank has the same
    gradients.

    counts: (N, ...) of each loss, in the order of `weights`
    """
    place = {name: i for i, name in enumerate(weights)}
    shares = []
    for name, term in terms.items():
        count = counts[place[name]].to(term.sum.dtype)
        value = torch.where(count > 0, term.sum, term.sum * 0)
        shares.append(weights[name] * value / count.clamp_min(1))
    return torch.stack(shares).sum()


def _no_batch(given: Any) -> UserError:
    return UserError(
        f"a loss reads a Batch, this is {type(given).__name__}; write transmamba.image_batch(images, classes)"
    )
