"""A whole Transformer as towers of residual sublayers and what is read from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ..core.layout import Layout
from ..core.output import Capture, Captures, Logits, Output, Stream
from .embeddings import Embedding
from .heads import Embedder, Head
from .sublayers import Norm, Sublayer

# takes a sublayer's number, an inner tensor's name and the tensor; `stream` is what comes out of the sublayer
TowerObserver = Callable[[int, str, Tensor], None]


@dataclass(frozen=True)
class Tower:
    """One stream: an embedding, residual sublayers, the norm of what comes out (None for none)."""

    embedding: Embedding
    sublayers: tuple[Sublayer, ...]
    norm: Norm | None
    layout: Layout

    @property
    def width(self) -> int:
        return self.embedding.width

    @property
    def kinds(self) -> tuple[str, ...]:
        """`attention` or `mlp`, of each sublayer."""
        return tuple(sublayer.kind for sublayer in self.sublayers)

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
            see("input", x)
            added = sublayer(x, context, see)
            see("output", added)
            x = x + added
            if observe is not None:
                observe(s, "stream", x)
            if s in capture.hidden:
                stream.hidden[s] = x
        return stream, x


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
class View:
    """Towers by name (`image`, `text`, `decoder`), and the head of each that has one."""

    towers: Mapping[str, Tower]
    heads: Mapping[str, Head] = field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        """Classes, or words of the vocabulary; None for a view that only embeds."""
        counts = [head.num_classes for head in self.heads.values() if not isinstance(head, Embedder)]
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
        """One forward pass with what `captures` names; a tower whose input is absent is not run.

        `observe(tower, sublayer, name, tensor)` is called with every inner tensor, for importance scores.
        """
        output = Output()
        for name, tower in self.towers.items():
            if tower.embedding.reads not in inputs:
                continue
            see = None if observe is None else partial(observe, name)
            output.streams[name], x = tower.run(inputs, (captures or {}).get(name, Capture()), see)
            self._read(name, tower, x, output)
        return output

    def _read(self, name: str, tower: Tower, x: Tensor, output: Output) -> None:
        head = self.heads.get(name)
        if head is None:
            return

        def read(hidden: Tensor) -> Tensor:
            return head(hidden if tower.norm is None else tower.norm(hidden), tower.layout)

        if isinstance(head, Embedder):
            output.embeddings[name] = read(x)
        else:
            output.logits = Logits(x, read)
