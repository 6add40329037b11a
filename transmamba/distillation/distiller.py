"""The distiller: a student, the projections to its teacher, and the losses between them, as one module.

Everything trainable is inside, so that DDP, DeepSpeed and FSDP see one forward; the teacher is held, not
owned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config.registry import LOSSES
from ..core.output import Capture, Output, Term, TokenLayout
from ..errors import UserError
from ..students.student import Student, feature_pairs
from ..teachers.teacher import Teacher, adapt_teacher
from .aligner import Aligner
from .signals import Geometry, Loss, Signals

DEFAULT_LOSSES = ("cross_entropy", "kl", "bidirectional")


class Distiller(nn.Module):
    """`forward(images, targets, step)` gives every loss as a `Term`; `loss(...)` their weighted mean.

    student: a `Student`; for cross-entropy alone, any module from images to logits
    teacher: a `Teacher`, or a timm / transformers ViT the user holds
    losses:  names, or configurations such as `KL(temperature=4)`
    kept:    the coordinates that subcloning chose (`Selection.residual`), where the projections start
    token_fraction: share of the matched tokens that feature losses look at, drawn anew each step
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module | None = None,
        losses: Sequence[Any] = DEFAULT_LOSSES,
        *,
        aligner: Aligner | None = None,
        kept: Tensor | None = None,
        token_fraction: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student = student
        # a Teacher is no module, so nothing registers it: it stays out of DDP, optimizers and checkpoints
        self.teacher = adapt_teacher(teacher) if isinstance(teacher, nn.Module) else teacher
        self.token_fraction, self.seed = token_fraction, seed
        geometry = geometry_of(student, self.teacher)
        self.losses = nn.ModuleDict(_build_losses(losses, geometry))
        if self.teacher is None and any(loss.needs_teacher for loss in self._losses().values()):
            needy = [name for name, loss in self._losses().items() if loss.needs_teacher]
            raise UserError(f"losses {', '.join(needy)} need a teacher; give one, or use cross_entropy alone")
        if (
            "kl" in self.losses
            and self.teacher
            and self.teacher.num_classes != getattr(student, "num_classes", 0)
        ):
            raise UserError(
                f"loss kl compares classes, but the teacher has {self.teacher.num_classes} and the student "
                f"{getattr(student, 'num_classes', 0)}; fine-tune the teacher's head first, or drop kl"
            )
        self.aligner = aligner
        wanted = set().union(*(loss.projections() for loss in self._losses().values()))
        if aligner is None and self.teacher is not None and geometry is not None:
            self.aligner = make_aligner(student, self.teacher, wanted, kept)

    def _losses(self) -> dict[str, Loss]:
        return dict(self.losses.items())  # type: ignore[arg-type]

    @property
    def weights(self) -> dict[str, float]:
        return {name: loss.weight for name, loss in self._losses().items()}

    @property
    def teacher_forced(self) -> bool:
        """Whether no loss asks for an end-to-end pass of the student."""
        return all(loss.teacher_forced for loss in self._losses().values())

    def used_projections(self) -> set[int]:
        return set().union(*(loss.projections() for loss in self._losses().values()))

    def counts(self, targets: Tensor) -> dict[str, int]:
        """Items of each loss in a micro-batch, from the batch alone."""
        return {name: loss.count(targets) for name, loss in self._losses().items()}

    def forward(
        self, images: Tensor, targets: Tensor, step: int = 0, *, drawn: Tensor | None = None
    ) -> dict[str, Term]:
        """Every loss as a Term. images (B, C, H, W), targets (B,) or (B, K); `step` draws the token subset,
        unless `drawn` is given."""
        losses = self._losses()
        drawn = self.draw_tokens(step, images.device) if drawn is None else drawn
        teacher = self._run_teacher(images, losses.values())
        terms: dict[str, Term] = {}
        forced = {name: loss for name, loss in losses.items() if loss.teacher_forced}
        free = {name: loss for name, loss in losses.items() if not loss.teacher_forced}
        if free:
            student = self._run_student(images, free.values(), drawn)
            signals = Signals(student, teacher, targets, self.aligner, drawn)
            terms |= {name: loss(signals) for name, loss in free.items()}
        if forced:
            assert teacher is not None, "checked in __init__"
            student = self._run_mixers(teacher, forced.values())
            signals = Signals(student, teacher, targets, self.aligner)
            terms |= {name: loss(signals) for name, loss in forced.items()}
        return {name: terms[name] for name in losses}

    def loss(self, images: Tensor, targets: Tensor, step: int = 0) -> tuple[Tensor, dict[str, float]]:
        """The weighted mean loss and each term as a number, for a loop of your own on one process.

        Adaptive weights are updated here; under several processes use the trainer, which adds up all ranks.
        """
        terms = self(images, targets, step)
        total = torch.stack(
            [self.weights[name] * term.sum / term.count for name, term in terms.items()]
        ).sum()
        self.observe(
            {name: term.parts / term.count for name, term in terms.items() if term.parts is not None}
        )
        return total, {name: float(term.sum.detach()) / term.count for name, term in terms.items()}

    @torch.no_grad()
    def observe(self, parts: Mapping[str, Tensor]) -> None:
        """Give each loss the per-layer means of the step just taken (over all ranks and micro-batches)."""
        for name, mean in parts.items():
            self._losses()[name].observe(mean)

    def draw_tokens(self, step: int, device: torch.device) -> Tensor | None:
        """Positions among the matched tokens, the same for every image, rank and micro-batch of a step."""
        if self.token_fraction >= 1 or self.aligner is None:
            return None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        total = self.aligner.num_tokens
        drawn = torch.randperm(total, generator=generator)[: max(1, round(total * self.token_fraction))]
        return drawn.sort().values.to(device)

    def _run_teacher(self, images: Tensor, losses: Iterable[Loss]) -> Output | None:
        losses = list(losses)
        if self.teacher is None or not any(loss.needs_teacher for loss in losses):
            return None
        capture = Capture()
        for loss in losses:
            capture = capture.union(loss.teacher_capture())
        return self.teacher(images, capture)

    def _run_student(self, images: Tensor, losses: Iterable[Loss], drawn: Tensor | None) -> Output:
        if not isinstance(self.student, Student):
            logits = self.student(images)
            # Hugging Face models wrap their logits
            logits = getattr(logits, "logits", logits)
            return Output(logits=logits, layout=None)  # type: ignore[arg-type]
        tokens = None if drawn is None or self.aligner is None else self.aligner.from_student[drawn]
        capture = Capture(tokens=tokens)
        for loss in losses:
            capture = capture.union(loss.student_capture())
        return self.student.run(images, capture)

    def _run_mixers(self, teacher: Output, losses: Iterable[Loss]) -> Output:
        """Every mixer that a loss asks for, on the teacher's own input of its layer."""
        assert isinstance(self.student, Student) and self.aligner is not None and self.teacher is not None
        capture = Capture()
        for loss in losses:
            capture = capture.union(loss.student_capture())
        sources = self.student.mixer_sources(self.teacher.num_blocks)
        output = Output(logits=None, layout=self.student.layout)
        for k in sorted(capture.mixers):
            t, sublayer = sources[k]
            hidden = self.aligner.to_student(teacher.mixers[t][f"{sublayer}_input"])
            made, parts = self.student.mixer(k, hidden, capture)
            output.mixers[k] = {"output": made, **parts}
        return output


def _build_losses(losses: Sequence[Any], geometry: Geometry | None) -> dict[str, Loss]:
    built: dict[str, Loss] = {}
    for item in losses:
        config = LOSSES[item]() if isinstance(item, str) else item
        base = name = config.name
        number = 2
        while name in built:
            name, number = f"{base}_{number}", number + 1
        if geometry is None and base != "cross_entropy":
            raise UserError(
                f"loss {base} needs a Mamba student and a teacher; with neither, use cross_entropy"
            )
        built[name] = config.build(geometry)
    if not built:
        raise UserError("no losses; name at least one, such as cross_entropy")
    return built


def geometry_of(student: nn.Module, teacher: Teacher | None) -> Geometry | None:
    """The correspondences between a student and its teacher; None where one of them is missing."""
    if teacher is None or not isinstance(student, Student):
        return None
    sources = student.mixer_sources(teacher.num_blocks)
    return Geometry(
        num_layers=student.num_layers,
        num_blocks=teacher.num_blocks,
        teacher_width=teacher.view.width,
        pairs=feature_pairs(student.num_layers, teacher.num_blocks),
        sources=sources,
        state=student.state_width,
        ranks=_ranks(teacher.layout, student.layout),
    )


def _ranks(teacher: TokenLayout, student: TokenLayout) -> tuple[int, ...] | None:
    if teacher.grid != student.grid:
        return None
    ranks = [-1] * teacher.length
    for here, there in zip(*teacher.match(student), strict=True):
        ranks[int(here)] = int(there)
    return tuple(ranks)


def make_aligner(
    student: nn.Module, teacher: Teacher, layers: Iterable[int], kept: Tensor | None = None
) -> Aligner:
    assert isinstance(student, Student), "geometry_of was asked first"
    return Aligner(
        student.layout,
        teacher.layout,
        student.width,
        teacher.view.width,
        layers,
        kept,
        num_blocks=teacher.num_blocks,
    )
