"""Pictures that do not decode: another takes their place, they are counted, and only so many are borne."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ...errors import UserError
from ..hashing import hash64
from ..images.decoding import refusal
from .source import PairSource, middle, video_source

logger = logging.getLogger("transmamba.data")

Limit = float | int

_UNKNOWN, _GOOD, _BAD = range(3)
_STREAM = 0xBAD  # sets these hashes apart from others of an index
_SHOWN = 3


def check_limit(limit: Limit) -> None:
    """Raises UserError unless it is a whole number from 0 or a share from 0.0 to below 1.0."""
    if limit < 0 or (isinstance(limit, float) and not limit < 1.0):
        raise UserError(f"limit of bad pictures {limit}: write a share below 1.0, or a whole number from 0")


@dataclass(frozen=True)
class Forgiving:
    """A source whose pictures that do not decode are each replaced by another, with that one's captions. A
    `PairSource`, and a `VideoSource` where the source is one: a video is good when its frames decode.

    Which one takes the place of number i follows from i and the files alone: the first that decodes from a
    position on that a hash of i gives. So a run that is resumed sees what it would have seen.

    limit: how many distinct pictures of the data set may be bad: a share of all (float), or a number (int).
           Within it none stops a run; beyond it, the picture that is one too many raises UserError, which
           lists the first few
    among: the numbers that may take a bad one's place, such as those trained on; None for all
    state: (N,) uint8, what is known of each picture; in shared memory, so that forked and spawned workers of
           one data loader count together, and their parent sees the count. Each rank counts for itself
    """

    source: PairSource
    limit: Limit
    among: npt.NDArray[np.int64] | None = None
    state: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_limit(self.limit)
        object.__setattr__(self, "state", torch.zeros(len(self.source), dtype=torch.uint8).share_memory_())

    @property
    def skipped(self) -> int:
        return self.source.skipped

    @property
    def bad(self) -> int:
        """How many pictures were found so far that do not decode."""
        return int((self.state == _BAD).sum())

    @property
    def allowed(self) -> int:
        """How many may be found; never all of them."""
        # the nudge undoes rounding, as in 100 * 0.29 = 28.999...
        asked = int(self.limit * len(self) + 1e-9) if isinstance(self.limit, float) else self.limit
        return min(asked, self._most - 1)

    def __len__(self) -> int:
        return len(self.source)

    def number(self, index: int) -> int:
        """The number in `source` of the picture that stands at `index`: itself, or what replaces it."""
        return self._found(index)[0]

    @property
    def num_frames(self) -> int | None:
        """Of a video; None where the source has pictures."""
        videos = video_source(self.source)
        return None if videos is None else videos.num_frames

    def image(self, index: int) -> Image.Image:
        """Raises UserError when more than `limit` pictures do not decode."""
        return middle(self._decoded_at(index))

    def frames(self, index: int) -> list[Image.Image]:
        """Of the video at `index`. Raises UserError as `image` does."""
        assert self.num_frames is not None, "asked of videos alone"
        return self._decoded_at(index)

    def captions(self, index: int) -> tuple[str, ...]:
        """Those of the picture that `image` gives, which is decoded here unless it was before."""
        return self.source.captions(self.number(index))

    def array(self) -> npt.NDArray[np.uint8] | None:
        return self.source.array()

    def _decoded_at(self, index: int) -> list[Image.Image]:
        number, pictures = self._found(index)
        return self._load(number) if pictures is None else pictures

    def _load(self, number: int) -> list[Image.Image]:
        """The frames of a video, or the one picture."""
        videos = video_source(self.source)
        return [self.source.image(number)] if videos is None else videos.frames(number)

    def _found(self, index: int) -> tuple[int, list[Image.Image] | None]:
        """What stands at `index`, and its pictures if they were decoded to know that."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        for number in chain((index,), self._instead(index)):
            if self.state[number] == _GOOD:
                return number, None
            if self.state[number] == _UNKNOWN:
                pictures = self._decoded(number)
                if pictures is not None:
                    return number, pictures
        raise AssertionError("allowed is below the number of pictures")

    def _instead(self, index: int) -> Iterator[int]:
        """What may take the place of number `index`, in order; nothing is made of it for a good one."""
        start = int(hash64(_STREAM, index)[0] % self._most)
        for step in range(self._most):
            place = (start + step) % self._most
            yield place if self.among is None else int(self.among[place])

    @property
    def _most(self) -> int:
        """How many may take a bad one's place."""
        return len(self) if self.among is None else len(self.among)

    def _decoded(self, number: int) -> list[Image.Image] | None:
        """Its pictures, if they decode; otherwise it is counted."""
        try:
            pictures = self._load(number)
        except UserError as error:
            self.state[number] = _BAD
            self._count(str(error))
            return None
        self.state[number] = _GOOD
        return pictures

    def _count(self, reason: str) -> None:
        count = self.bad
        if count > self.allowed:
            raise UserError(
                f"{self._listed()}: more than the limit {self.limit} allows (task.bad_limit); mend or remove "
                "them, or raise it"
            )
        if count <= _SHOWN:
            logger.warning("another %s takes the place of one that is bad: %s", self._what, reason)

    def _listed(self) -> str:
        first = torch.nonzero(self.state == _BAD).flatten()[:_SHOWN].tolist()
        reasons = "; ".join(filter(None, (refusal(number, self._load) for number in first)))
        fails = getattr(self.source, "fails", "do not decode")
        return f"{self.bad} of {len(self)} {self._what}s {fails} ({reasons})"

    @property
    def _what(self) -> str:
        """What an item is called: a picture, a video, or as the source says."""
        usual = "picture" if self.num_frames is None else "video"
        return str(getattr(self.source, "what", usual))
