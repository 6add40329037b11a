"""Whole batches of questions about pictures: to learn their answers, and to have them answered in writing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ...core.batch import IGNORED, Batch
from ...core.text import TextOnly
from ...ecosystems.generation import left_padded
from ...errors import UserError
from ..images.batches import few
from ..images.decoding import pixels
from .asked import Asking
from .bad import ForgivingQuestions
from .source import Item, QuestionSource

Indices = npt.NDArray[np.int64]


@contextmanager
def naming(number: int) -> Iterator[None]:
    """Within it what is wrong with an item is said with its number."""
    try:
        yield
    except UserError as error:
        raise UserError(f"question {number}: {error}") from error


class Shown:
    """Pictures as inputs of a model, where it is shown any."""

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        reads = asking.reads
        self.transform = None if isinstance(reads, TextOnly) else reads.pictures.eval_transform()

    def of(self, pictures: Sequence[Sequence[Image.Image]]) -> dict[str, Tensor]:
        """`image` (P, C, H, W) and `image_row` (P,) of the pictures of B rows; nothing of none."""
        rows = [row for row, several in enumerate(pictures) for _ in several]
        if not rows or not self.asking.style.pictures:
            return {}
        assert self.transform is not None, "a model that is shown pictures says how they look"
        made = [self.transform(picture) for several in pictures for picture in several]
        return {"image": torch.stack(made), "image_row": torch.tensor(rows)}


class TrainQuestions:
    """Batches of `source` by arrays of (epoch, position); a position counts in `indices`, (M,). An item comes
    once an epoch, the same each time.

    source: in which another takes the place of an item that cannot be used; what its `usable` makes of an
        item, if it has one, is the item's `Asking.example`
    """

    def __init__(self, source: ForgivingQuestions, indices: Indices, asking: Asking) -> None:
        self.source, self.indices, self.asking, self.shown = source, indices, asking, Shown(asking)

    def quick(self, count: int) -> bool:
        return False  # each is decoded and tokenised

    def identity(self) -> dict[str, Any]:
        """All that its batches depend on, as JSON can hold it. Items are known by their number, and by the
        tokens and pixels of a few."""
        reads, digest = self.asking.reads, hashlib.sha256(self.indices.tobytes())
        for index in few(self.indices):
            ids, start = self.asking.example(self.source.item(int(index)))
            digest.update(np.array([start, *ids], dtype=np.int64).tobytes())
            for picture in self.source.images(int(index)):
                digest.update(pixels(picture).tobytes())
        pictures = None if isinstance(reads, TextOnly) else {**asdict(reads.pictures), "text": None}
        style = {**asdict(self.asking.style), "places": self.asking.places}
        words = self.asking.tokenizer.identity
        return {"preprocessing": pictures, "style": style, "tokenizer": words, "items": digest.hexdigest()}

    def batch(self, pairs: Indices) -> Batch:
        """The items `pairs`, (B, 2). Raises UserError when too many of all items cannot be used."""
        index = self.indices[pairs[:, 1]]
        read = [self.source.read(int(i)) for i in index]
        rows = [self.asking.example(each.item) if each.made is None else each.made for each in read]
        return learned_batch(rows, index, self.shown.of(read), self.asking)


class EvalQuestions:
    """The same by numbers of items, each as it is."""

    def __init__(self, source: QuestionSource, asking: Asking) -> None:
        self.source, self.asking, self.shown = source, asking, Shown(asking)

    def quick(self, count: int) -> bool:
        return False

    def batch(self, index: Indices) -> Batch:
        """Items `index`, (B,). Raises UserError, naming it, for one that cannot be used."""
        rows, pictures = [], []
        for number in index.tolist():
            with naming(number):
                item = self.source.item(number)
                rows.append(self.asking.example(item))
                pictures.append(item.images() if self.asking.style.pictures else [])
        return learned_batch(rows, index, self.shown.of(pictures), self.asking)


class AskedQuestions:
    """Batches of prompts, which models go on from, by places in `index`.

    index:     (N,) the numbers of the items whose answers are right
    questions: (N,) whose question is asked
    pictures:  (N,) whose pictures are shown, as many as those of the question's own; None for blank ones
    room:      tokens of an answer
    """

    def __init__(
        self,
        source: QuestionSource,
        asking: Asking,
        room: int,
        index: Indices,
        questions: Indices,
        pictures: Indices | None,
    ) -> None:
        self.source, self.asking, self.room, self.shown = source, asking, room, Shown(asking)
        self.index, self.questions, self.pictures = index, questions, pictures

    def quick(self, count: int) -> bool:
        return False

    def batch(self, places: Indices) -> Batch:
        """(B,) of them. Raises UserError, naming it, for an item that cannot be asked."""
        rows, pictures = [], []
        for place in places.tolist():
            with naming(int(self.questions[place])):
                item = self.source.item(int(self.questions[place]))
                rows.append(self.asking.prompt(item, self.room))
                pictures.append(self._pictures(place, item))
        shown = self.shown.of(pictures)
        if self.pictures is None and "image" in shown:
            shown["image"] = torch.zeros_like(shown["image"])  # the mean colour
        return asked_batch(rows, self.index[places], shown, self.asking)

    def _pictures(self, place: int, item: Item) -> list[Image.Image]:
        if not self.asking.style.pictures or not item.pictures:
            return []
        number = int(self.questions[place] if self.pictures is None else self.pictures[place])
        found = self.source.item(number).images()
        assert len(found) == len(item.pictures), "whoever paired them has looked"
        return found


def asked_batch(
    rows: Sequence[list[int]], index: Indices, pictures: dict[str, Tensor], asking: Asking
) -> Batch:
    """Inputs `text` (B, L), padded before, `text_mask` and `prompt_mask` (B, L) bool, with `pictures`, of
    each row's prompt."""
    inputs = left_padded(rows)
    inputs["prompt_mask"] = inputs["text_mask"] & (inputs["text"] != asking.image_token)
    return _counted({**inputs, **pictures}, {}, index, asking)


def learned_batch(
    rows: Sequence[tuple[list[int], int]], index: Indices, pictures: dict[str, Tensor], asking: Asking
) -> Batch:
    """Inputs `text` (B, L), padded behind, `text_mask` and `prompt_mask` (B, L) bool, with `pictures`;
    targets `tokens` (B, L), shifted: -100 but for the answer.

    rows: each row's tokens, and how many of them are the prompt
    """
    length = max(len(ids) for ids, _ in rows) - 1
    text = torch.zeros(len(rows), length, dtype=torch.int64)
    mask, prompt = torch.zeros_like(text, dtype=torch.bool), torch.zeros_like(text, dtype=torch.bool)
    targets = torch.full_like(text, IGNORED)
    for row, (ids, start) in enumerate(rows):
        read = torch.tensor(ids)
        text[row, : len(ids) - 1], mask[row, : len(ids) - 1] = read[:-1], True
        prompt[row, :start] = read[:start] != asking.image_token
        targets[row, start - 1 : len(ids) - 1] = read[start:]
    inputs = {"text": text, "text_mask": mask, "prompt_mask": prompt, **pictures}
    return _counted(inputs, {"tokens": targets}, index, asking)


def _counted(inputs: dict[str, Tensor], targets: dict[str, Tensor], index: Indices, asking: Asking) -> Batch:
    check_places(inputs, index, asking.image_token, asking.places)
    counts = {
        "samples": len(index),
        "tokens": int(inputs["text_mask"].sum()),
        "words": int((inputs["text_mask"] & (inputs["text"] != asking.image_token)).sum()),
        "pictures": len(inputs.get("image", ())),
    }
    if "tokens" in targets:
        counts["answers"] = int((targets["tokens"] != IGNORED).sum())
    return Batch(inputs, targets, torch.from_numpy(np.asarray(index, dtype=np.int64)), counts)


def check_places(inputs: dict[str, Tensor], index: Indices, image_token: int, places: int) -> None:
    """Raises UserError where a row's `text` (B, L) has another number of image tokens than its pictures
    (`image_row`, (P,)) take."""
    found = (inputs["text"] == image_token).sum(dim=1)
    rows = inputs.get("image_row", torch.zeros(0, dtype=torch.int64))
    pictures = torch.bincount(rows, minlength=len(found))
    for row in (found != places * pictures).nonzero()[:1, 0].tolist():
        raise UserError(
            f"question {int(index[row])}: its text has {int(found[row])} image tokens, but its "
            f"{int(pictures[row])} pictures of {places} take {places * int(pictures[row])}"
        )
