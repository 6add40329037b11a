"""What training never sees, and the sets of scenes and clips by number.

Held back from training: the kinds HELD_KINDS, one pair of colour and kind in ten, the style HELD_STYLES, the
templates HELD_TEMPLATES, and a fifth of the statements (kind, relation, kind) in one of their two orders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from ...errors import UserError, suggest
from ..hashing import Draws, hash64, permutation
from . import captions, clips
from .clips import Clip, draw_clip
from .draw import render
from .programs import (
    COLOURS,
    HELD_KINDS,
    HELD_STYLES,
    KINDS,
    OPPOSITES,
    STYLES,
    Menu,
    Pair,
    Scene,
    draw_scene,
    swapped,
)

# Their order is part of the hash that draws them: append, do not sort.
SPLITS = (
    *("train", "val", "test"),
    *("unseen_pairs", "unseen_objects", "unseen_style", "unseen_templates", "swapped_relations"),
)
_SCENES, _CLIPS, _TEMPLATES = 1, 2, 3  # streams of random numbers

HELD_PAIRS: tuple[Pair, ...] = tuple(
    (colour, kind)
    for row, colour in enumerate(COLOURS)
    for column, kind in enumerate(KINDS)
    if (row + 3 * column) % 10 == 0
)
TRAIN_PAIRS: tuple[Pair, ...] = tuple(
    (colour, kind) for colour in COLOURS for kind in KINDS if (colour, kind) not in HELD_PAIRS
)
_BASES = ("left of", "above", "larger than")


def is_held(kind: str, relation: str, other: str) -> bool:
    """Whether no training caption says that a `kind` is `relation` an `other`, whichever its words.

    The opposite, the same two kinds in the other order, is said in training.
    """
    if relation not in _BASES:
        kind, relation, other = other, OPPOSITES[relation], kind
    if kind == other or not {kind, other} <= set(KINDS):
        return False
    one, two = KINDS.index(kind), KINDS.index(other)
    chosen = (one + two + 2 * _BASES.index(relation)) % 5 == 0
    return chosen and (one < two) == (one * two % 2 == 0)


def is_seen(kind: str, relation: str, other: str) -> bool:
    """Whether training captions may say it."""
    return not is_held(kind, relation, other)


@cache
def menu(split: str) -> Menu:
    """What the split's scenes are drawn from: training's menu with one thing changed."""
    if split == "unseen_pairs":
        return Menu(TRAIN_PAIRS, is_seen, first=HELD_PAIRS)
    if split == "unseen_objects":
        held = tuple((colour, kind) for colour in COLOURS for kind in HELD_KINDS)
        return Menu(TRAIN_PAIRS, is_seen, first=held)
    if split == "unseen_style":
        return Menu(TRAIN_PAIRS, is_seen, styles=HELD_STYLES)
    if split == "swapped_relations":
        return Menu(TRAIN_PAIRS, is_held, styles=STYLES, needs_relation=True)
    return Menu(TRAIN_PAIRS, is_seen)


@dataclass(frozen=True, kw_only=True)
class _Numbered:
    """What Scenes and Clips share: items by number, each drawn from (seed, split, number) alone."""

    split: str = "train"
    count: int = 100_000
    side: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"split {self.split!r} is unknown{suggest(self.split, SPLITS)}")
        if self.count < 1:
            raise UserError(f"count {self.count}: write how many items there are, at least 1")

    def __len__(self) -> int:
        return self.count

    def _draws(self, stream: int, index: int) -> Draws:
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} of {self.count}")
        number = index // 2 if self.split == "swapped_relations" else index
        return Draws(int(hash64(self.seed, stream, SPLITS.index(self.split), number)[0]))

    def twin(self, index: int) -> int | None:
        """The number of its twin; None where it has none."""
        other = index ^ 1
        return other if self.split == "swapped_relations" and other < self.count else None

    def _is_twin(self, index: int) -> bool:
        return self.split == "swapped_relations" and index % 2 == 1

    def _templates(self, index: int, train: tuple[str, ...], held: tuple[str, ...]) -> list[str]:
        """The templates of an item in its own order; twins have the same."""
        templates = held if self.split == "unseen_templates" else train
        return [templates[n] for n in permutation(len(templates), self._draws(_TEMPLATES, index).bits())]


@dataclass(frozen=True, kw_only=True)
class Scenes(_Numbered):
    """Pictures with captions.

    split: one of SPLITS
    count: how many; any prefix of a longer set is the shorter one
    side:  pixels a side of a picture unless asked otherwise
    seed:  of the drawing; pictures of different splits differ under the same seed

    In swapped_relations the items 2 k and 2 k + 1 are twins: the same objects, the two of the relation in
    each other's place, the same template. The even one states what training never states.
    """

    def program(self, index: int) -> Scene:
        """What is in picture number `index`. Raises IndexError beyond the last one."""
        scene = draw_scene(self._draws(_SCENES, index), menu(self.split))
        return swapped(scene) if self._is_twin(index) else scene

    def picture(self, index: int, side: int | None = None) -> npt.NDArray[np.uint8]:
        """(side, side, 3) uint8 RGB. Raises UserError for a side that cannot be drawn."""
        return render(self.program(index), self.side if side is None else side)

    def caption(self, index: int, variant: int = 0) -> str:
        """One caption; variants 0 to 11 differ in their template (0 to 3 in unseen_templates)."""
        return captions.caption(self.program(index), self._wordings(index)[variant % self.variants])

    def captions(self, index: int, count: int) -> tuple[str, ...]:
        """Its variants 0 to count - 1, each once."""
        scene = self.program(index)
        return tuple(captions.caption(scene, template) for template in self._wordings(index)[:count])

    @property
    def variants(self) -> int:
        """How many captions of a picture differ."""
        held = self.split == "unseen_templates"
        return len(captions.HELD_TEMPLATES if held else captions.TEMPLATES)

    def _wordings(self, index: int) -> list[str]:
        return self._templates(index, captions.TEMPLATES, captions.HELD_TEMPLATES)


@dataclass(frozen=True, kw_only=True)
class Clips(_Numbered):
    """Clips with captions that tell which of two events comes first.

    split, count, side, seed: as of Scenes; swapped_relations has twins, the same events in either order
    frames: how many a clip has, at least 3
    pairs:  how many pairs of colour and kind there are, all if left out: with few, many clips show the same
        things and differ in what happens
    """

    frames: int = 8
    pairs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 3:
            raise UserError(f"frames {self.frames}: write at least 3, for two events")
        if self.pairs is not None and not clips.MOST_IN_CLIP <= self.pairs <= len(TRAIN_PAIRS):
            raise UserError(f"pairs {self.pairs}: write {clips.MOST_IN_CLIP} to {len(TRAIN_PAIRS)}")

    def program(self, index: int) -> Clip:
        """What happens in clip number `index`. Raises IndexError beyond the last one."""
        clip = draw_clip(self._draws(_CLIPS, index), self._menu())
        return clip.swapped() if self._is_twin(index) else clip

    def _menu(self) -> Menu:
        known = menu(self.split)
        if self.pairs is None:
            return known
        few, first = (_spread(some, self.pairs) for some in (known.pairs, known.first))
        # a clip states no relation, and few kinds may have none that is held back
        return replace(known, pairs=few, first=first, needs_relation=False)

    def pictures(self, index: int, side: int | None = None) -> npt.NDArray[np.uint8]:
        """(frames, side, side, 3) uint8 RGB. Raises UserError for a side that cannot be drawn."""
        scenes = self.program(index).frames(self.frames)
        return np.stack([render(scene, self.side if side is None else side) for scene in scenes])

    @property
    def variants(self) -> int:
        """How many captions of a clip differ."""
        held = self.split == "unseen_templates"
        return len(clips.HELD_TEMPLATES if held else clips.TEMPLATES)

    def caption(self, index: int, variant: int = 0) -> str:
        """One caption; variants 0 to 9 differ in their template (0 and 1 in unseen_templates)."""
        return clips.caption(self.program(index), self._wordings(index)[variant % self.variants])

    def captions(self, index: int, count: int) -> tuple[str, ...]:
        """Its variants 0 to count - 1, each once."""
        clip = self.program(index)
        return tuple(clips.caption(clip, template) for template in self._wordings(index)[:count])

    def _wordings(self, index: int) -> list[str]:
        return self._templates(index, clips.TEMPLATES, clips.HELD_TEMPLATES)


def _spread(pairs: tuple[Pair, ...], count: int) -> tuple[Pair, ...]:
    """`count` of them, evenly spaced; all where there are no more."""
    return pairs if len(pairs) <= count else tuple(pairs[n * len(pairs) // count] for n in range(count))
