"""Which of some texts a model of images and texts, such as a CLIP, finds most like a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.batch import image_batch
from ..errors import UserError
from .embedded import embedded
from .predict import Answer, Prediction, check_top, likeliest, of_classes, predictions
from .run import ModelRunner
from .zero_shot import class_vectors, inputs_of

# a text as it is
AS_IT_IS = ("{}",)


def read_labels(words: Sequence[str]) -> tuple[str, ...]:
    """The texts that `words` are, or the lines of the one text file that they name. Raises UserError for
    fewer than two, an empty one and one that is there twice."""
    found = list(words)
    if len(found) == 1 and (path := Path(found[0]).expanduser()).is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"labels {path}: no text in UTF-8 ({error}); write one label a line") from None
        found = [line.strip() for line in lines if line.strip()]
    if len(found) < 2:
        raise UserError(
            f"labels: {', '.join(map(repr, found)) or 'none'}; write two texts or more to choose from, or a "
            "file with one a line"
        )
    for text in found:
        if not text.strip() or found.count(text) > 1:
            what = "is there twice" if text.strip() else "is empty"
            raise UserError(f"labels: {text!r} {what}; write each text once")
    return tuple(found)


def predict_texts(
    runner: ModelRunner,
    preprocessing: Any,
    paths: Sequence[Path],
    labels: Sequence[str],
    *,
    scalars: Mapping[str, Tensor],
    templates: Sequence[str] = AS_IT_IS,
    top: int = 5,
    batch_size: int = 64,
) -> Iterator[Prediction]:
    """A prediction a path, in their order: the labels in whose templates' mean embedding the picture's is
    nearest, as zero-shot classification has them.

    scalars: `scale` of the model's similarities and, of a SigLIP, `bias`. With a bias a probability is each
        text's own (sigmoid), as that model learnt; without one they add up to 1 over the labels (softmax)

    Raises UserError for a model that gives no embeddings of both, or some that are not finite.
    """
    check_top(top)
    if preprocessing.text is None:
        raise UserError("this model does not say how its texts are read; write one of open_clip")
    scale, bias = scalars["scale"].item(), scalars.get("bias")
    with runner:
        texts = class_vectors("the model", runner, labels, templates, inputs_of(preprocessing.text))

        def answers(images: Tensor) -> list[Answer]:
            batch = image_batch(images, torch.zeros(len(images), dtype=torch.int64))
            image = torch.from_numpy(embedded("the model", runner, batch, ("image",))["image"])
            if runner.trouble is not None:
                raise UserError(f"the weights are damaged: {runner.trouble}")
            logits = scale * (image.double() @ texts.double().T)
            found = logits.softmax(dim=-1) if bias is None else (logits + bias.item()).sigmoid()
            return likeliest(found, labels, top)

        yield from predictions(paths, preprocessing, answers, batch_size, of_classes, upright=True)
