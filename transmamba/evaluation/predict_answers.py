"""What a model that answers questions says of a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.preprocessing import PicturesAndText
from ..data.questions.asked import Asking
from ..data.questions.batches import asked_batch
from ..data.questions.source import Item
from ..data.staged import final_answer
from ..errors import UserError
from .predict import Prediction, predictions
from .run import ModelRunner


@dataclass(frozen=True)
class _Shown:
    """A picture that stands for each of them: a prompt says how many there are, no more."""

    def image(self) -> Image.Image:
        raise AssertionError("prompts are made without pictures")


def predict_answers(
    runner: ModelRunner, asking: Asking, paths: Sequence[Path], question: str, room: int, batch_size: int = 16
) -> Iterator[Prediction]:
    """The answer to one question of each picture, in their order; greedily, in writing, as the task
    `questions` asks.

    asking: how it is put to the model; room: tokens of an answer at most

    Raises UserError for a question that cannot be asked: an empty one, one too long, one of two pictures.
    """
    if room < 1:
        raise UserError(f"tokens is {room}; write how many an answer may have, at least 1")
    try:
        prompt = asking.prompt(Item(question=question, answers=("",), pictures=(_Shown(),)), room)
    except UserError as error:
        raise UserError(f"question {question!r}: {error}") from None
    assert isinstance(asking.reads, PicturesAndText), "whoever asks has looked"

    def answers(images: Tensor) -> list[str]:
        rows, shown = np.arange(len(images)), {"image": images, "image_row": torch.arange(len(images))}
        batch = asked_batch([prompt] * len(images), rows, shown, asking)
        return [asking.tokenizer.words(ids).strip() for ids in runner.generate(batch, room).tolist()]

    def say(path: Path, written: str) -> Prediction:
        return Prediction(path, answer=final_answer(written), written=written)

    with runner, torch.no_grad():
        yield from predictions(paths, asking.reads.pictures, answers, batch_size, say, upright=True)
