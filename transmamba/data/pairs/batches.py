"""Data sets of pictures or videos with captions that make whole batches, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ...core.batch import Batch
from ...core.preprocessing import Preprocessing
from ...core.text import Tokenizer
from ...errors import UserError
from ..hashing import hash64
from ..images.augment import Augment, Moves
from ..images.batches import Augmented, Transformed, few, identity_of
from ..images.decoding import pixels
from .source import PairSource, video_source

Indices = npt.NDArray[np.int64]

# Which hash of (seed, ..., epoch, index): augmentation and the order of an epoch use others.
_CAPTION = 2


class TrainPairs:
    """Augmented batches of `source` by arrays of (epoch, position); a position counts in `indices`, (M,).

    A picture comes once an epoch, with one of its captions, drawn from (seed, epoch, picture). So does a
    video, whose frames are all changed alike.

    tokenizer: None where only pictures are read
    """

    def __init__(
        self,
        source: PairSource,
        indices: Indices,
        preprocessing: Preprocessing,
        tokenizer: Tokenizer | None,
        augment: Augment,
        seed: int,
    ) -> None:
        self.source, self.indices, self.videos = source, indices, video_source(source)
        self.images, self.tokenizer, self.seed = Augmented(source, preprocessing, augment), tokenizer, seed

    def quick(self, count: int) -> bool:
        return self.images.quick(count)

    def identity(self) -> dict[str, Any]:
        """All that its batches depend on, as JSON can hold it. Pictures are known by their number, and by the
        pixels and, where they are read, captions of a few."""
        contents = chain(
            (self.indices.tobytes(),), *(self._contents(int(index)) for index in few(self.indices))
        )
        found = identity_of(self.images, self.seed, contents) | {"captions": self.tokenizer is not None}
        return found if self.videos is None else {**found, "frames": self.videos.num_frames}

    def _contents(self, index: int) -> Iterator[bytes]:
        yield from (pixels(picture).tobytes() for picture in self._pictures(index))
        if self.tokenizer is not None:
            yield "\n".join(self.source.captions(index)).encode()

    def batch(self, pairs: Indices) -> Batch:
        """The items `pairs`, (B, 2). Raises UserError when one does not decode."""
        epoch, index = pairs[:, 0], self.indices[pairs[:, 1]]
        moves = Moves.draw(self.images.augment, self.seed, epoch, index)
        visual = self._visual(index, moves)  # first: what is decoded here, captions need not decode again
        captions = None if self.tokenizer is None else self._captions(epoch, index)
        # a bad picture's place is taken by another, whose captions are no wrong answers to it
        number = getattr(self.source, "number", int)
        of = index if captions is None else np.array([number(int(i)) for i in index], dtype=np.int64)
        return pair_batch(visual, index, captions, of, self.tokenizer)

    def _visual(self, index: Indices, moves: Moves) -> dict[str, Tensor]:
        """The inputs that hold pictures, of items (B,)."""
        if self.videos is None:
            return {"image": self.images(index, moves)}
        clips = [self.videos.frames(int(i)) for i in index]
        counts = [len(clip) for clip in clips]
        images = self.images.changed(chain.from_iterable(clips), moves.repeated(counts))
        return frame_inputs(images, counts, self.videos.num_frames)

    def _pictures(self, index: int) -> list[Image.Image]:
        return [self.source.image(index)] if self.videos is None else self.videos.frames(index)

    def _captions(self, epoch: Indices, index: Indices) -> list[str]:
        drawn = hash64(self.seed, _CAPTION, epoch, index)
        every = [self.source.captions(int(i)) for i in index]
        for number, captions in zip(index, every, strict=True):
            if not captions:
                raise UserError(
                    f"training picture {number} has no caption; leave such pictures out, or write "
                    "task.captions: false"
                )
        return [captions[int(bits) % len(captions)] for captions, bits in zip(every, drawn, strict=True)]


class EvalPairs:
    """Batches of `source` by arrays of picture numbers, through the evaluation transform, with all captions
    of each picture."""

    def __init__(self, source: PairSource, preprocessing: Preprocessing, tokenizer: Tokenizer | None) -> None:
        self.source, self.tokenizer, self.videos = source, tokenizer, video_source(source)
        self.images = Transformed(source, preprocessing)

    def quick(self, count: int) -> bool:
        return self.images.quick(count)

    def batch(self, index: Indices) -> Batch:
        """Pictures `index`, (B,), perhaps none. Raises UserError when one does not decode."""
        visual = self._visual(index)
        if self.tokenizer is None:
            return pair_batch(visual, index, None, index, None)
        every = [self.source.captions(int(i)) for i in index]
        of = np.repeat(index, [len(captions) for captions in every])
        return pair_batch(
            visual, index, [text for captions in every for text in captions], of, self.tokenizer
        )

    def _visual(self, index: Indices) -> dict[str, Tensor]:
        if self.videos is None:
            return {"image": self.images(index)}
        clips = [self.videos.frames(int(i)) for i in index]
        images = self.images.of([frame for clip in clips for frame in clip])
        return frame_inputs(images, [len(clip) for clip in clips], self.videos.num_frames)


def frame_inputs(images: Tensor, counts: Sequence[int], most: int) -> dict[str, Tensor]:
    """`frames` (B, T, C, H, W), zeros behind the end of a video, and their mask (B, T), with T = most.

    images: (N, C, H, W), the frames of one video after another; counts: of each video, (B,)
    """
    assert all(0 < count <= most for count in counts) and sum(counts) == len(images), "as a VideoSource says"
    mask = torch.arange(most) < torch.tensor(counts, dtype=torch.int64)[:, None]
    frames = images.new_zeros(len(counts), most, *images.shape[1:])
    frames[mask] = images
    return {"frames": frames, "frames_mask": mask}


def pair_batch(
    visual: Mapping[str, Tensor],
    index: Indices,
    captions: Sequence[str] | None,
    of: Indices,
    tokenizer: Tokenizer | None,
) -> Batch:
    """Pictures or videos with the numbers (N,), captions (M,) with the number of each one's picture (M,),
    which is the target `group`.

    visual: the inputs `image` (N, C, H, W), or `frames` and their mask
    """
    inputs = dict(visual)
    targets: dict[str, Tensor] = {}
    counts = {"samples": len(index)}
    if captions is not None:
        assert tokenizer is not None, "captions are for a model that reads texts"
        tokens = tokenizer(captions)
        inputs["text"] = tokens.ids
        if tokens.mask is not None:
            inputs["text_mask"] = tokens.mask
        targets["group"] = torch.from_numpy(np.asarray(of, dtype=np.int64))
        real = tokens.ids.numel() if tokens.mask is None else int(tokens.mask.sum())
        counts |= {"pairs": len(captions), "tokens": real}
    return Batch(inputs, targets, torch.from_numpy(np.asarray(index, dtype=np.int64)), counts)
