"""Questions that cannot be used, for a picture that does not decode or for what a task says: another takes
the place of each, they are counted, and only so many are borne."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..pairs.bad import Forgiving, Limit
from .source import Item, QuestionSource


@dataclass(frozen=True)
class ForgivingQuestions:
    """A `QuestionSource` whose items with a picture that does not decode are each replaced by another item,
    as `pairs.bad.Forgiving` does it.

    source: what is read
    limit:  how many items may be bad: a share of all (float), or a number (int); beyond it UserError
    among:  the numbers that may take a bad one's place, such as those trained on; None for all
    usable: raises UserError, of an item by its number, for one that is bad for another reason, and returns
        what it made to know that; None where there is no other
    seen:   whether pictures are looked at: else none is decoded
    """

    source: QuestionSource
    limit: Limit
    among: npt.NDArray[np.int64] | None = None
    usable: Callable[[int, Item], Any] | None = None
    seen: bool = True
    _pictures: Forgiving = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "_pictures",
            Forgiving(_AsFrames(self.source, self.usable, self.seen), self.limit, self.among),
        )

    @property
    def skipped(self) -> int:
        return self.source.skipped

    @property
    def bad(self) -> int:
        """How many were found so far."""
        return self._pictures.bad

    def __len__(self) -> int:
        return len(self.source)

    def number(self, index: int) -> int:
        """The number in `source` of the item that stands at `index`."""
        return self._pictures.number(index)

    def item(self, index: int) -> Item:
        """Its pictures decode. Raises UserError when more than `limit` items are bad."""
        return self.source.item(self.number(index))

    def images(self, index: int) -> list[Image.Image]:
        """Of the item at `index`, none where they are not looked at. Raises UserError as `item` does."""
        return self._pictures.frames(index)

    def read(self, index: int) -> Read:
        """All of the item at `index`, looked at once: a drawn one is made anew by whoever asks for it. Raises
        UserError as `item` does."""
        found = self._pictures.frames(index)
        assert isinstance(found, Read), "as `_AsFrames` reads them"
        return found

    def twin(self, index: int) -> int | None:
        """Whose twin the item at `index` is; None of one that took another's place, of one whose twin was
        replaced, and in a source without twins."""
        of = getattr(self.source, "twin", None)
        other: int | None = of(index) if of is not None and self.number(index) == index else None
        return other if other is not None and self.number(other) == other else None


class Read(list[Image.Image]):
    """The pictures of an item, with the item and what `usable` made of it (None without one)."""

    def __init__(self, pictures: list[Image.Image], item: Item, made: Any) -> None:
        super().__init__(pictures)
        self.item, self.made = item, made


@dataclass(frozen=True)
class _AsFrames:
    """The pictures of each item as `Forgiving` reads those of a video: none, one or several."""

    source: QuestionSource
    usable: Callable[[int, Item], Any] | None = None
    seen: bool = True
    num_frames = 0
    what, fails = "question", "cannot be used"

    @property
    def skipped(self) -> int:
        return self.source.skipped

    def __len__(self) -> int:
        return len(self.source)

    def frames(self, index: int) -> Read:
        item = self.source.item(index)
        made = None if self.usable is None else self.usable(index, item)
        return Read(item.images() if self.seen else [], item, made)

    def image(self, index: int) -> Image.Image:
        raise AssertionError("asked of all pictures of an item at once")

    def captions(self, index: int) -> tuple[str, ...]:
        return ()

    def array(self) -> None:
        return None
