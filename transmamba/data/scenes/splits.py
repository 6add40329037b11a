"""The sets of scenes and clips by number; what the splits hold back from training says `menus`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...errors import UserError, suggest
from ..hashing import Draws, hash64, permutation
from . import captions, clips
from .clips import Clip, draw_clip
from .draw import render
from .menus import TRAIN_PAIRS, menu
from .programs import Pair, Scene, swapped
from .sampling import Menu, draw_scene
from .stock import SHAPES_ALONE, Stock

# Their order is part of the hash that draws them: append, do not sort.
SPLITS = (
    *("train", "val", "test"),
    *("unseen_pairs", "unseen_objects", "unseen_style", "unseen_templates", "swapped_relations"),
)
_SCENES, _CLIPS, _TEMPLATES = 1, 2, 3  # streams of random numbers


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """What Scenes, Clips and SceneQuestions share: items by number, each drawn from (seed, split, number)
    alone."""

    split: str = "train"
    count: int = 100_000
    side: int = 64
    seed: int = 0
    stock: Stock = SHAPES_ALONE

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"split {self.split!r} is unknown{suggest(self.split, SPLITS)}")
        if self.count < 1:
            raise UserError(f"count {self.count}: write how many items there are, at least 1")

    def __len__(self) -> int:
        return self.count

    @cached_property
    def _menu(self) -> Menu:
        return menu(self.split, self.stock)

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
class Scenes(Numbered):
    """Pictures with captions.

    split: one of SPLITS
    count: how many; any prefix of a longer set is the shorter one
    side:  pixels a side of a picture unless asked otherwise
    seed:  of the drawing; pictures of different splits differ under the same seed
    stock: of tiles and photographs, that of the split; by default there are drawn shapes alone

    In swapped_relations the items 2 k and 2 k + 1 are twins: the same objects, the two of the relation in
    each other's place, the same template. The even one states what training never states.
    """

    def program(self, index: int) -> Scene:
        """What is in picture number `index`. Raises IndexError beyond the last one."""
        scene = draw_scene(self._draws(_SCENES, index), self._menu)
        return swapped(scene) if self._is_twin(index) else scene

    def picture(self, index: int, side: int | None = None) -> npt.NDArray[np.uint8]:
        """(side, side, 3) uint8 RGB. Raises UserError for a side that cannot be drawn."""
        return render(self.program(index), self.side if side is None else side, self.stock)

    def caption(self, index: int, variant: int = 0) -> str:
        """One caption; variants 0 to 11 differ in their template (0 to 3 in unseen_templates). Those of odd
        number call tiles by shorter names."""
        return self._say(self.program(index), self._wordings(index)[variant % self.variants], variant)

    def captions(self, index: int, count: int) -> tuple[str, ...]:
        """Its variants 0 to count - 1, each once."""
        scene = self.program(index)
        wordings = self._wordings(index)[:count]
        return tuple(self._say(scene, template, variant) for variant, template in enumerate(wordings))

    @property
    def variants(self) -> int:
        """How many captions of a picture differ."""
        held = self.split == "unseen_templates"
        return len(captions.HELD_TEMPLATES if held else captions.TEMPLATES)

    def _wordings(self, index: int) -> list[str]:
        return self._templates(index, captions.TEMPLATES, captions.HELD_TEMPLATES)

    def _say(self, scene: Scene, template: str, variant: int) -> str:
        return captions.caption(scene, template, short=variant % 2 == 1)


@dataclass(frozen=True, kw_only=True)
class Clips(Numbered):
    """Clips with captions that tell which of two events comes first.

    split, count, side, seed: as of Scenes; swapped_relations has twins, the same events in either order
    frames: how many a clip has, at least 3
    pairs:  how many pairs of colour and kind there are of each sort of objects, all if left out: with few,
        many clips show the same things and differ in what happens
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
        clip = draw_clip(self._draws(_CLIPS, index), self._menu)
        return clip.swapped() if self._is_twin(index) else clip

    @cached_property
    def _menu(self) -> Menu:
        known = menu(self.split, self.stock)
        if self.pairs is None:
            return known
        groups, first = (
            tuple(_spread(group, self.pairs) for group in some) for some in (known.groups, known.first)
        )
        # a clip states no relation, and few kinds may have none that is held back
        return replace(known, groups=groups, first=first, needs_relation=False)

    def pictures(self, index: int, side: int | None = None) -> npt.NDArray[np.uint8]:
        """(frames, side, side, 3) uint8 RGB. Raises UserError for a side that cannot be drawn."""
        scenes = self.program(index).frames(self.frames)
        return np.stack([render(scene, self.side if side is None else side, self.stock) for scene in scenes])

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
