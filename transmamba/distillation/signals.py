"""What the distiller hands to a loss: two `Output`s, and their features brought side by side.

Shapes: B rows, M matched tokens (or the m of them that were drawn), T teacher channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.output import Capture, Captures, Output, Stream, Term, autocast_type
from ..errors import refuse_all
from .aligner import Aligner, words_alone
from .cosine import cosine as cosine  # losses read this file alone
from .cosine import unit as unit


@dataclass(frozen=True)
class StreamGeometry:
    """Sizes and correspondences of one stream that both models have.

    name, item: image, text, decoder; what a loss over it counts, `samples` or `tokens`
    kinds:   of the teacher's sublayers, `attention` or `mlp`
    pairs:   student layer -> teacher sublayer after which residual streams are compared
    sources: student mixer -> teacher sublayer whose work it takes over
    parts:   inner tensors that the student's mixers give, with their widths
    windows: of the teacher's sublayers that read the last tokens alone, how many
    inner:   of the teacher's attention sublayers, the widths of `q` and `k`: `teacher_width` where they are
        not said; k is narrower where several heads share one
    image_token: what stands in its texts where pictures do; None of a stream that reads none
    """

    name: str
    item: str
    num_layers: int
    teacher_width: int
    kinds: tuple[str, ...]
    pairs: dict[int, int]
    sources: dict[int, int]
    parts: Mapping[str, int] = field(default_factory=dict)
    windows: Mapping[int, int] = field(default_factory=dict)
    inner: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    image_token: int | None = None


@dataclass(frozen=True)
class Geometry:
    """What losses are built from: the streams that both models have, and their numbers of classes."""

    streams: Mapping[str, StreamGeometry]
    teacher_classes: int | None = None
    student_classes: int | None = None

    @property
    def same_classes(self) -> bool:
        """Whether both may tell the same classes apart: the student's number may be unknown (None)."""
        return self.teacher_classes is not None and self.student_classes in (None, self.teacher_classes)


@dataclass
class Signals:
    """One micro-batch as losses see it.

    aligners: by stream
    drawn:    by stream, positions among the matched tokens; a stream that is missing has all
    """

    student: Output
    teacher: Output | None
    batch: Batch
    aligners: Mapping[str, Aligner] = field(default_factory=dict)
    drawn: Mapping[str, Tensor] = field(default_factory=dict)
    _streams: dict[tuple[str, int | None], StreamSignals] = field(default_factory=dict)

    @property
    def taught(self) -> Output:
        """The teacher's side."""
        assert self.teacher is not None, "checked when the distiller was built"
        return self.teacher

    def stream(self, name: str, image_token: int | None = None) -> StreamSignals:
        """Both sides of one stream; with `image_token` its words alone, where that stands in no text."""
        key, words = (name, image_token), image_token is not None
        if key not in self._streams:
            taught = self.taught.streams[name]
            if image_token is not None:
                taught = replace(taught, mask=words_alone(taught.mask, self.batch, image_token))
            self._streams[key] = StreamSignals(
                self.student.streams[name], taught, self.aligners[name], self.drawn.get(name), words
            )
        return self._streams[key]


@dataclass
class StreamSignals:
    """One stream of both. `drawn`: positions among the matched tokens, None for all; `words`: no pictures."""

    student: Stream
    teacher: Stream
    aligner: Aligner
    drawn: Tensor | None = None
    words: bool = False
    _units: dict[tuple[bool, tuple[int, ...]], Tensor] = field(default_factory=dict)

    def rows(self, per_token: Tensor) -> Tensor:
        """(..., B, M) -> (..., B): the mean over a row's tokens where all rows have the same ones, else the
        sum over its real ones. The one rule by which a loss over features reduces."""
        if self.teacher.mask is not None:
            return (per_token * self.teacher.mask).sum(dim=-1)
        return per_token.mean(dim=-1) if self.aligner.num_tokens is not None else per_token.sum(dim=-1)

    def amount(self, rows: Tensor) -> Tensor | float:
        """What `rows` makes of ones: how much a row weighs; rows (..., B)."""
        if self.teacher.mask is not None:
            return self.teacher.mask.sum(dim=-1).to(rows.dtype)
        if self.aligner.num_tokens is not None:
            return 1.0
        kept = [*self.teacher.hidden.values(), *(x for m in self.teacher.mixers.values() for x in m.values())]
        return float(kept[0].shape[-2])  # of (B, L, D), of heads (B, H, L, P) too

    def real(self, x: Tensor) -> Tensor:
        """Features (B, M, T) with zeros where a token is padding."""
        return x if self.teacher.mask is None else x * self.teacher.mask[..., None]

    def teacher_units(self, sublayers: Sequence[int], standardise: bool = False) -> Tensor:
        """The teacher's residual streams after `sublayers` on the matched tokens, (n, B, m, T), every token
        at length 1, in the type of a product under autocast; in units of the teacher's statistics first,
        where asked."""
        key = (standardise, tuple(sublayers))
        if key not in self._units:
            # one after the other: all in float32 at once would be the largest thing in memory
            tokens = [(s, self.aligner.teacher_tokens(self.teacher.hidden[s], self.drawn)) for s in sublayers]
            aligner, words = self.aligner, self.words
            own = (aligner.standardise([s], x[None], words)[0] if standardise else x for s, x in tokens)
            self._units[key] = _stack([unit(x) for x in own])
        return self._units[key]

    def student_hidden(self, layers: Sequence[int]) -> Tensor:
        """The student's residual streams after `layers` in the teacher's space, (n, B, m, T).

        All layers in one product, here and in `student_branches`: a GPU has little to do in each.
        """
        tokens = [self.aligner.student_tokens(self.student.hidden[k], self.drawn) for k in layers]
        return self.aligner.project_all(layers, _stack(tokens))

    def student_branches(self, layers: Sequence[int]) -> Tensor:
        """The layers' forward and backward branch features in the teacher's space, (2, n, B, m, T)."""
        branches, aligner = [self.student.branches[k] for k in layers], self.aligner

        def tokens(x: Tensor) -> Tensor:  # the student has kept the drawn ones alone
            return aligner.student_tokens(x) if self.drawn is None else x

        made = aligner.project_all(layers, _stack([tokens(branch.merged) for branch in branches]))
        halves = {
            k: tokens(branch.half)
            for k, branch in zip(layers, branches, strict=True)
            if branch.half is not None
        }
        if not halves:
            return made.expand(2, *made.shape)
        # one product for the mixer's projection and ours: the features in between are never needed
        through = [branch.weight for branch in branches if branch.weight is not None]
        spread = aligner.project_all(
            list(halves), _stack(list(halves.values())), _stack(through) if through else None
        )
        if len(halves) < len(layers):  # a layer that kept its attention has one feature for both
            each, none = dict(zip(halves, spread, strict=True)), torch.zeros_like(made[0])
            spread = torch.stack([each.get(k, none) for k in layers])
        return torch.stack((made + spread, made - spread))


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stacked in the type that a product under autocast would give them, so that nothing is kept twice."""
    rounded = autocast_type(tensors[0].device.type)
    return torch.stack(tensors if rounded is None else [x.to(rounded) for x in tensors])


class Loss(nn.Module):
    """A loss over a micro-batch: returns sums, never an average; the batch counts its items.

    needs_teacher:  whether it reads `Signals.teacher`
    reads_logits:   whether it reads the student's logits (so that its head gets a gradient)
    teacher_forced: whether it wants the student's mixers run on the teacher's own inputs instead of a
        forward pass
    standardises:   whether it wants the aligner to know the teacher's statistics
    coupled:        whether every item is compared with all others of the step, see `distillation.coupled`
    targets:        of a batch, of which it reads one; none where it reads none, or could do without
    embeds:         whether it reads the student's embeddings
    numbers:        of the student's `Output.scalars`, those it reads
    """

    needs_teacher = True
    reads_logits = False
    teacher_forced = False
    standardises = False
    coupled = False
    targets: tuple[str, ...] = ()
    embeds = False
    numbers: tuple[str, ...] = ()

    def __init__(self, weight: float, stream: StreamGeometry | None = None, words: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.image_token = stream.image_token if stream is not None and words else None  # left out
        self.stream = "" if stream is None else stream.name
        self._item = "samples" if stream is None else stream.item

    @property
    def reads(self) -> tuple[str, ...]:
        """Towers without whose input it has nothing to compare."""
        return (self.stream,) if self.stream else ()

    def item(self, batch: Batch) -> str:
        """What this loss counts in such a batch: a key of `Batch.counts`. Pictures that lie in rows of text
        are counted apart from these, and so are a text's words without the tokens of pictures."""
        own = self._item if self.image_token is None else "words"
        return "pictures" if self.stream == "image" and "pictures" in batch.counts else own

    def student_captures(self) -> Captures:
        return {}

    def teacher_captures(self) -> Captures:
        return {}

    def projections(self) -> set[int]:
        """Student layers of its stream whose projection this loss reads."""
        return set()

    def observe(self, parts: Tensor) -> None:
        """Per-layer means of the step just taken, over all ranks and micro-batches."""

    def part_names(self) -> list[str]:
        """Names of the entries of `Term.parts`, flattened, for the log."""
        return []

    def no_parts(self) -> Tensor | None:
        """`Term.parts` of a batch that lacks its stream: every rank sends as many numbers."""
        return torch.zeros(len(self.part_names())) if self.part_names() else None

    def forward(self, signals: Signals) -> Term:
        raise NotImplementedError


def only(stream: str, capture: Capture) -> Captures:
    """What is kept of one stream alone."""
    return {stream: capture}


def check_weight(weight: float, momentum: float = 0.0, also: Sequence[str] = ()) -> None:
    """Raises WrongValues for a loss weight, or the momentum of a running mean, that cannot be meant, and for
    whatever `also` is wrong."""
    problems = []
    if not 0 <= weight < math.inf:
        problems.append(f"weight is {weight}; write 0 or a number above it")
    if not 0 <= momentum < 1:
        problems.append(f"momentum is {momentum}; write a number from 0 to below 1")
    refuse_all([*problems, *also])


def stack_parts(values: list[Tensor]) -> Tensor:
    return torch.stack([value.detach().float().sum() for value in values])
