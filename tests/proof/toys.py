"""Two modalities as users would add them: a dual encoder of pictures and captions, and a language model.

Teachers, students, a loss, tasks and evaluators; nothing of the core knows them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba.config.registry import LOSSES, STUDENTS, TASKS, TEACHERS, Registry
from transmamba.core.batch import Batch
from transmamba.core.layout import Grid, Layout
from transmamba.core.layout import Sequence as Text
from transmamba.core.output import Capture, Captures, Context, Logits, Output, Stream, Term
from transmamba.core.task import Answer, Listing, Metric, Outcome, Pass, Sample, Steps
from transmamba.core.tower import StudentSpec
from transmamba.data.stream import StepSampler
from transmamba.distillation.coupled import embeddings
from transmamba.distillation.signals import Geometry, Loss, Signals, check_weight
from transmamba.subcloning.plan import Dropped, Take
from transmamba.teachers.teacher import Teacher
from transmamba.views.embeddings import ImageEmbedding, TokenEmbedding
from transmamba.views.heads import Embedder, LanguageHead
from transmamba.views.sublayers import Affine, Attention, Mlp, Norm
from transmamba.views.view import Tower, View

WORDS, LENGTH, WIDTH, EMBEDDED = 13, 9, 8, 6

_PARTS: list[tuple[Registry, str, type]] = []


def part(registry: Registry, name: str) -> Callable[[type], type]:
    """As `registry.register(name)`, but only within `registered()`: other tests look at the registries."""

    def add(cls: type) -> type:
        cls.name = name  # type: ignore[attr-defined]
        _PARTS.append((registry, name, cls))
        return cls

    return add


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """All toys in their registries."""
    for registry, name, cls in _PARTS:
        registry.register(name)(cls)
    try:
        yield
    finally:
        for registry, name, _ in _PARTS:
            del registry._parts[name]


# --- teachers ---


class Numbers:
    """Tensors of a healthy size, drawn one after the other."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator) / shape[-1] ** 0.5

    def norm(self, width: int) -> Norm:
        return Norm(1 + 0.1 * self(width), 0.1 * self(width), 1e-6)

    def affine(self, out: int, into: int) -> Affine:
        return Affine(self(out, into), 0.1 * self(out))

    def block(self, width: int, causal: bool) -> tuple[Attention, Mlp]:
        q, k, v, o = (self.affine(width, width) for _ in range(4))
        attention = Attention(self.norm(width), q, k, v, o, heads=2, causal=causal)
        mlp = Mlp(self.norm(width), self.affine(2 * width, width), self.affine(width, 2 * width), F.gelu)
        return attention, mlp

    def text(self, causal: bool) -> Tower:
        embedding = TokenEmbedding(self(WORDS, WIDTH), self(LENGTH, WIDTH))
        return Tower(
            embedding, (*self.block(WIDTH, causal), *self.block(WIDTH, causal)), self.norm(WIDTH), Text()
        )

    def image(self) -> Tower:
        layout = Grid(2, 2, special=(("cls", 0),))
        embedding = ImageEmbedding(self(WIDTH, 1, 2, 2), self(WIDTH), self(1, WIDTH), self(5, WIDTH))
        return Tower(embedding, self.block(WIDTH, False), self.norm(WIDTH), layout)


@part(TEACHERS, "toy_clip")
@dataclass(frozen=True, kw_only=True)
class ToyClip:
    """A dual encoder of random weights."""

    def build(self) -> Teacher:
        draw = Numbers(0)
        towers = {"image": draw.image(), "text": draw.text(causal=False)}
        # its text is pooled where a caption begins, a token that no padding stands before here
        heads = {"image": Embedder("cls", draw.affine(EMBEDDED, WIDTH))}
        return Teacher(View(towers, heads), source="toy", preprocessing=None, num_params=1)


@part(TEACHERS, "toy_lm")
@dataclass(frozen=True, kw_only=True)
class ToyLanguageModel:
    """A causal language model of random weights."""

    def build(self) -> Teacher:
        draw = Numbers(1)
        view = View({"text": draw.text(causal=True)}, {"text": LanguageHead(draw.affine(WORDS, WIDTH))})
        return Teacher(view, source="toy", preprocessing=None, num_params=1)


# --- students ---


class Mixer(nn.Module):
    """What a token adds: the mean of what it may read, through one linear; a recurrence would do the same."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.norm, self.linear, self.causal = nn.LayerNorm(width), nn.Linear(width, width), causal

    def forward(self, x: Tensor, context: Context) -> Tensor:
        length = x.shape[1]
        reads = torch.ones(1, length, length, dtype=torch.bool, device=x.device)
        if self.causal:
            reads = reads.tril()
        if context.segments is not None:
            reads = reads & (context.segments[:, :, None] == context.segments[:, None, :])
        if context.mask is not None:
            reads = reads & context.mask[:, None, :]
        weights = reads.to(x.dtype) / reads.sum(dim=-1, keepdim=True).clamp_min(1)
        return self.linear(weights @ self.norm(x))


class ToyTower(nn.Module):
    """A stream of `Mixer`s."""

    def __init__(self, name: str, layout: Layout, width: int, layers: int, causal: bool = False) -> None:
        super().__init__()
        self.name, self.layout, self.width, self.num_layers, self.parts = name, layout, width, layers, {}
        if name == "image":
            self.embed: nn.Module = nn.Conv2d(1, width, 2, 2)
            self.special = nn.Parameter(torch.randn(1, 1, width))
        else:
            self.embed = nn.Embedding(WORDS, width)
        self.mixers = nn.ModuleList(Mixer(width, causal) for _ in range(layers))

    def forward(self, inputs: Mapping[str, Tensor], capture: Capture) -> tuple[Stream, Tensor]:
        context = Context.of(inputs, self.name)
        x = self.embed(inputs[self.name])
        if self.name == "image":
            x = torch.cat([self.special.expand(len(x), -1, -1), x.flatten(2).mT], dim=1)
        stream = Stream(self.layout, context.mask)
        for k, mixer in enumerate(self.mixers):
            x = x + mixer(x, context)
            if k in capture.hidden:
                stream.hidden[k] = x
        return stream, x

    def sources(self, kinds: Sequence[str]) -> dict[int, int]:
        return {k: k * len(kinds) // self.num_layers for k in range(self.num_layers)}

    def mixer(
        self, k: int, hidden: Tensor, context: Context, capture: Capture
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.mixers[k](hidden, context), {}


class ToyStudent(nn.Module):
    """Towers by name; a dual encoder where there are two, a language model where there is one."""

    def __init__(self, towers: dict[str, ToyTower], classes: int | None) -> None:
        super().__init__()
        self.parts_by_name = nn.ModuleDict(towers)
        self.num_classes = classes
        self.scale, self.bias = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-2.0))
        width = next(iter(towers.values())).width
        self.readouts = nn.ModuleDict({name: nn.Linear(width, classes or EMBEDDED) for name in towers})

    @property
    def towers(self) -> dict[str, ToyTower]:
        return dict(self.parts_by_name.items())  # type: ignore[arg-type]

    def run(self, inputs: Mapping[str, Tensor], captures: Captures) -> Output:
        output = Output(scalars={} if self.num_classes else {"scale": self.scale.exp(), "bias": self.bias})
        for name, tower in self.towers.items():
            if name not in inputs:
                continue
            output.streams[name], x = tower(inputs, captures.get(name, Capture()))
            if self.num_classes:
                output.logits = Logits(x, self.readouts[name])
                continue
            mask = output.streams[name].mask
            pooled = (
                x.mean(dim=1) if mask is None else (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            )
            output.embeddings[name] = F.normalize(self.readouts[name](pooled), dim=-1)
        return output

    def plan(self, view: View, select: Mapping[str, Any]) -> Iterator[Take | Dropped]:
        """Token tables as they are; the rest has no place in so small a student."""
        if "text" in view.towers:
            table = view.towers["text"].embedding.weight
            yield Take(
                target="parts_by_name.text.embed.weight",
                source="text.embedding",
                tensor=table,
                index=(None, select["text"].residual),
            )

    def groups(self) -> dict[str, Callable[[str], bool]]:
        return {
            "mixers": lambda name: ".mixers." in name,
            "text": lambda name: ".text." in name,
            "image": lambda name: ".image." in name,
        }

    def units(self) -> list[nn.Module]:
        return [mixer for tower in self.towers.values() for mixer in tower.mixers]


@part(STUDENTS, "toy_dual")
@dataclass(frozen=True, kw_only=True)
class ToyDual:
    """The dual encoder's student."""

    def build(self, spec: StudentSpec) -> nn.Module:
        towers = {
            "image": ToyTower("image", Grid(2, 2, special=(("cls", 0),)), 6, 2),
            "text": ToyTower("text", Text(), 6, 2),
        }
        return ToyStudent(towers, None)


@part(STUDENTS, "toy_causal")
@dataclass(frozen=True, kw_only=True)
class ToyCausal:
    """The language model's student."""

    def build(self, spec: StudentSpec) -> nn.Module:
        return ToyStudent({"text": ToyTower("text", Text(), 6, 3, causal=True)}, WORDS)


# --- a coupled loss ---


@part(LOSSES, "toy_contrastive")
@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """CLIP's: cross-entropy of each picture among all captions of the step, and the other way round."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build(self, geometry: Geometry | None = None) -> ContrastiveLoss:
        return ContrastiveLoss(self.weight)


class ContrastiveLoss(Loss):
    needs_teacher = False
    coupled = True

    def item(self, batch: Batch) -> str:
        return "pairs"

    def value(self, bank: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> Tensor:
        logits = numbers["scale"] * bank["image"] @ bank["text"].mT
        right = torch.arange(len(logits), device=logits.device)
        both = F.cross_entropy(logits, right, reduction="sum") + F.cross_entropy(
            logits.mT, right, reduction="sum"
        )
        return both / 2

    def forward(self, signals: Signals) -> Term:
        return Term(self.value(embeddings(signals), signals.student.scalars))


# --- tasks ---


class ToyData:
    """Rows that a seed draws, in the resumable order of every task."""

    watched = final = "test"
    num_train, row_tokens = 24, LENGTH
    preprocessing: Any = None
    num_classes: int | None = None
    evaluator: type

    def make(self, index: np.ndarray) -> Batch:
        raise NotImplementedError

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return self.evaluator.METRICS

    def check(self, model: Any, who: str) -> None:
        pass

    def change(self, batch: Batch, seed: int) -> Batch:
        return batch

    def look_through(self) -> Iterator[str]:
        return iter(())

    def train_batches(self, steps: Steps) -> Iterator[Batch]:
        sampler = StepSampler(num_items=self.num_train, steps=steps)
        for pairs in sampler:
            yield self.make(pairs[:, 1])

    def calibration(self, samples: int, batch_size: int) -> Iterator[Batch]:
        for start in range(0, min(samples, self.num_train), batch_size):
            yield self.make(np.arange(start, min(start + batch_size, self.num_train)))

    def evaluators(self, split: str) -> tuple[Any, ...]:
        return (self.evaluator(self, split),)


def drawn(index: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + int(index))


class Pairs(ToyData):
    def make(self, index: np.ndarray) -> Batch:
        images = torch.stack([torch.randn(1, 4, 4, generator=drawn(i)) for i in index])
        lengths = torch.tensor([2 + int(i) % (LENGTH - 2) for i in index])
        text = torch.stack([torch.randint(WORDS, (LENGTH,), generator=drawn(-i - 1)) for i in index])
        mask = torch.arange(LENGTH) < lengths[:, None]
        counts = {"samples": len(index), "pairs": len(index), "tokens": int(mask.sum())}
        return Batch({"image": images, "text": text, "text_mask": mask}, {}, torch.from_numpy(index), counts)


class PackedText(ToyData):
    """Two documents a row, then padding; nothing is asked across their border."""

    num_classes = WORDS

    def make(self, index: np.ndarray) -> Batch:
        rows = []
        for i in index:
            first, used = 2 + int(i) % 3, 6 + int(i) % 3
            text = torch.randint(WORDS, (LENGTH,), generator=drawn(i))
            places = torch.arange(LENGTH)
            segment = (places >= first).int()
            real = places < used
            targets = text.roll(-1)
            targets[(places == first - 1) | (places >= used - 1)] = -100
            rows.append((text, segment, real, targets))
        text, segment, real, targets = (torch.stack(part) for part in zip(*rows, strict=True))
        counts = {"samples": len(index), "tokens": int(real.sum()), "answers": int((targets != -100).sum())}
        inputs = {"text": text, "text_segment": segment, "text_mask": real}
        return Batch(inputs, {"tokens": targets}, torch.from_numpy(index), counts)


class ToyEvaluator:
    """Rows of a split that no training sees, shared among processes."""

    rows = 8

    def __init__(self, data: ToyData, split: str) -> None:
        self.data, self.split, self.metrics = data, split, self.METRICS

    METRICS: tuple[Metric, ...]

    def batches(self, passing: Pass) -> Iterator[Batch]:
        mine = np.arange(500, 500 + self.rows)[passing.rank :: passing.world]
        for start in range(0, len(mine), passing.batch_size):
            yield self.data.make(mine[start : start + passing.batch_size])

    def start(self) -> dict[str, list[Any]]:
        return {}

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        return {}


class Recall(ToyEvaluator):
    """Whether a picture's own caption is the nearest."""

    METRICS = (Metric(key="recall", label="recall@1 %", headline=True),)

    def add(self, tally: dict[str, list[Any]], runners: Mapping[str, Any], batch: Batch) -> None:
        for name, runner in runners.items():
            made = runner.embed(batch)
            if {"image", "text"} <= made.keys():
                tally.setdefault(name, []).append((batch.index, made["image"].cpu(), made["text"].cpu()))

    def finish(self, tallies: Sequence[dict[str, list[Any]]]) -> dict[str, Outcome]:
        found = {}
        for name in tallies[0]:
            parts = [part for tally in tallies for part in tally[name]]
            index, image, text = (torch.cat(column) for column in zip(*parts, strict=True))
            right = (image @ text.mT).argmax(dim=1) == torch.arange(len(index))
            scores = 100.0 * right.double().numpy()
            table = Listing(
                "by caption",
                ("row", "right"),
                [(str(int(i)), str(bool(r))) for i, r in zip(index, right, strict=True)],
            )
            found[name] = Outcome(
                {"recall": float(scores.mean())}, {"recall": scores}, index.numpy(), (table,)
            )
        return found

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        scores = outcomes["student"].items["recall"]
        return [
            Sample("captions", (Answer("student", f"row {i}", bool(s)),), text=f"caption {i}")
            for i, s in enumerate(scores)
        ][:count]


class Perplexity(ToyEvaluator):
    """Nats a token, of student and teacher."""

    METRICS = (Metric(key="nats", label="nats a token", form="{:.4f}", better="down", headline=True),)

    def add(self, tally: dict[str, list[Any]], runners: Mapping[str, Any], batch: Batch) -> None:
        targets = batch.targets["tokens"]
        for name, runner in runners.items():
            logits = runner.logits(batch)().double().cpu()
            nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            tally.setdefault(name, []).append((float(nats), batch.counts["answers"]))

    def finish(self, tallies: Sequence[dict[str, list[Any]]]) -> dict[str, Outcome]:
        found = {}
        for name in tallies[0]:
            parts = [part for tally in tallies for part in tally[name]]
            nats, count = (sum(column) for column in zip(*parts, strict=True))
            found[name] = Outcome({"nats": nats / count})
        return found

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        return []


Pairs.evaluator, PackedText.evaluator = Recall, Perplexity


@part(TASKS, "toy_pairs")
@dataclass(frozen=True, kw_only=True)
class ToyPairs:
    """Pictures and captions."""

    def build(self, preprocessing: Any) -> Pairs:
        return Pairs()


@part(TASKS, "toy_text")
@dataclass(frozen=True, kw_only=True)
class ToyText:
    """Packed documents."""

    def build(self, preprocessing: Any) -> PackedText:
        return PackedText()
