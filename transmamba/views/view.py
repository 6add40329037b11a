"""A whole Transformer as towers of residual sublayers and what is read from them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.frames import embed_frames
from ..core.layout import Layout
from ..core.output import Capture, Captures, Context, Logits, Output, Stream
from .embeddings import Embedding, Spliced
from .heads import Classifier, Embedder, Head, LanguageHead
from .placed import Placed, skeletons
from .sublayers import Norm, Observer, Sublayer, map_tensors

# takes a sublayer's number, an inner tensor's name and the tensor; `stream` is what comes out of the sublayer
TowerObserver = Callable[[int, str, Tensor], None]
# takes a batch's number, the tower, and the same
Walker = Callable[[int, str, int, str, Tensor], None]


@dataclass(frozen=True)
class Tower:
    """One stream: an embedding, residual sublayers, the norm of what comes out (None for none)."""

    embedding: Embedding
    sublayers: Sequence[Sublayer]
    norm: Norm | None
    layout: Layout

    @property
    def width(self) -> int:
        return self.embedding.width

    @property
    def kinds(self) -> tuple[str, ...]:
        """`attention` or `mlp`, of each sublayer."""
        return tuple(sublayer.kind for sublayer in skeletons(self.sublayers))

    @property
    def ends(self) -> tuple[int, ...]:
        """The sublayers that end a block, which begins with attention."""
        return block_ends(self.kinds)

    @property
    def names(self) -> tuple[str, ...]:
        """`blocks.3.attention` and the like, of each sublayer."""
        blocks = [sum(end < s for end in self.ends) for s in range(len(self.sublayers))]
        return tuple(f"blocks.{t}.{kind}" for t, kind in zip(blocks, self.kinds, strict=True))

    def run(
        self, inputs: Mapping[str, Tensor], capture: Capture, observe: TowerObserver | None = None
    ) -> tuple[Stream, Tensor]:
        """The stream with what `capture` names, and its end (B, L, D) before the last norm."""
        x, context = self.embedding(inputs)
        stream = Stream(self.layout, context.mask)
        for s, sublayer in enumerate(self.sublayers):
            see = partial(_see, stream, capture.mixers.get(s, frozenset()), observe, s)
            x = _through(sublayer, x, context, see)
            if s in capture.hidden:
                stream.hidden[s] = x
        return stream, x


def _through(sublayer: Sublayer, x: Tensor, context: Context, see: Observer) -> Tensor:
    see("input", x)
    added = sublayer(x, context, see)
    see("output", added)
    x = x + added
    see("stream", x)
    return x


def _see(
    stream: Stream, wanted: frozenset[str], observe: TowerObserver | None, s: int, name: str, tensor: Tensor
) -> None:
    if name in wanted:
        stream.mixers.setdefault(s, {})[name] = tensor
    if observe is not None:
        observe(s, name, tensor)


def block_ends(kinds: tuple[str, ...]) -> tuple[int, ...]:
    """The last sublayer of each block: a block begins with attention, and the first with the first
    sublayer."""
    begins = [s for s, kind in enumerate(kinds) if kind == "attention" and s > 0]
    return tuple(s - 1 for s in [*begins, len(kinds)])


@dataclass(frozen=True)
class Opaque:
    """A tower that no view expresses and nobody converts, such as a BERT text encoder: its own code, which
    gives one vector a row.

    embed:  (B, E) of the inputs; an nn.Module, or what closes over `module`
    reads:  the input without which it is not run
    config: what its own library rebuilds it from; None where nothing says so
    """

    module: nn.Module
    embed: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    reads: str = "text"
    config: Mapping[str, Any] | None = None

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, E), of length 1."""
        return torch.nn.functional.normalize(self.embed(self.module, inputs), dim=-1)


def _moved(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy there, or the module itself where it is there already."""
    here = next((tensor.device for tensor in module.parameters()), device)
    return module if here == device else copy.deepcopy(module).to(device)


@dataclass(frozen=True)
class View:
    """Towers by name (`image`, `text`, `decoder`), and the head of each that has one.

    scalars: learnt numbers that losses read: `scale` (of similarities, no logarithm), `bias`
    opaque:  towers that are only run
    config:  what its own library rebuilds it from, for a student that is saved as one of that library's; None
        where nothing says so
    """

    towers: Mapping[str, Tower]
    heads: Mapping[str, Head] = field(default_factory=dict)
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    opaque: Mapping[str, Opaque] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None

    @property
    def reads(self) -> set[str]:
        """The inputs that its towers take."""
        return {tower.embedding.reads for tower in self.towers.values()} | {
            tower.reads for tower in self.opaque.values()
        }

    def to(self, device: torch.device | str) -> View:
        """The same view there; this one stays where it is."""
        moved: View = map_tensors(self, lambda tensor: tensor.to(device))
        opaque = {
            name: replace(tower, module=_moved(tower.module, torch.device(device)))
            for name, tower in self.opaque.items()
        }
        towers = {
            name: replace(tower, sublayers=tower.sublayers.on(torch.device(device)))
            if isinstance(tower.sublayers, Placed)
            else tower
            for name, tower in moved.towers.items()
        }
        return replace(moved, towers=towers, opaque=opaque)

    @property
    def num_classes(self) -> int | None:
        """Of its classifier; None for a view without one."""
        counts = [head.num_classes for head in self.heads.values() if isinstance(head, Classifier)]
        return counts[0] if counts else None

    @property
    def vocabulary(self) -> int | None:
        """Words of its language head; None for a view without one."""
        counts = [head.vocabulary for head in self.heads.values() if isinstance(head, LanguageHead)]
        return counts[0] if counts else None

    @property
    def tensor(self) -> Tensor:
        """One of its tensors, whose device and type are the view's."""
        first = next(iter(self.towers.values()))
        return first.embedding.weight

    def run(
        self,
        inputs: Mapping[str, Tensor],
        captures: Captures | None = None,
        observe: Callable[[str, int, str, Tensor], None] | None = None,
    ) -> Output:
        """One forward pass with what `captures` names; a tower whose input is absent is not run. Of `frames`
        there is an embedding of each video, and no stream.

        `observe(tower, sublayer, name, tensor)` is called with every inner tensor, for importance scores.
        """
        output, ends = Output(scalars=dict(self.scalars)), dict[str, Tensor]()
        for name, tower in self.towers.items():
            if tower.embedding.reads not in inputs:
                continue
            see = None if observe is None else partial(observe, name)
            given = {**inputs, **self._spliced(tower, ends)}
            output.streams[name], ends[name] = tower.run(given, (captures or {}).get(name, Capture()), see)
            self._read(name, tower, ends[name], inputs, output)
        for name, opaque in self.opaque.items():
            if opaque.reads in inputs:
                output.embeddings[name] = opaque(inputs)
        if "frames" in inputs:
            output.embeddings["image"] = embed_frames(inputs, captures or {}, self.run)
        return output

    def walk(self, batches: Sequence[Mapping[str, Tensor]], observe: Walker) -> Iterator[tuple[str, int]]:
        """Several batches' inputs through one sublayer after the other, so that each is brought only once;
        yields tower and sublayer when all are through. No heads, and nothing of frames."""
        ends: list[dict[str, Tensor]] = [{} for _ in batches]
        for name, tower in self.towers.items():
            mine = {
                b: tower.embedding({**inputs, **self._spliced(tower, ends[b])})
                for b, inputs in enumerate(batches)
                if tower.embedding.reads in inputs
            }
            for s, sublayer in enumerate(tower.sublayers) if mine else ():
                for b, (x, context) in mine.items():
                    mine[b] = _through(sublayer, x, context, partial(observe, b, name, s)), context
                yield name, s
            for b, (x, _) in mine.items():
                ends[b][name] = x

    def _spliced(self, tower: Tower, ends: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tokens of another tower that this one takes in, as an input of it."""
        embedding = tower.embedding
        if not isinstance(embedding, Spliced) or embedding.source not in ends:
            return {}
        source, x = self.towers[embedding.source], ends[embedding.source]
        x = x if source.norm is None else source.norm(x)
        layout: Any = source.layout
        return {embedding.features: x if embedding.special else x[:, layout.patches]}

    def _read(self, name: str, tower: Tower, x: Tensor, inputs: Mapping[str, Tensor], output: Output) -> None:
        head = self.heads.get(name)
        if head is None:
            return

        def read(hidden: Tensor) -> Tensor:
            return head(hidden if tower.norm is None else tower.norm(hidden), tower.layout, inputs)

        if isinstance(head, Embedder):
            output.embeddings[name] = read(x)
        else:
            output.logits = Logits(x, read)
