"""What a classifier says of pictures that nobody has labelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from ..core.batch import image_batch
from ..data.classes import count_of
from ..data.images.decoding import turn_upright
from ..data.images.folder import suffixes
from ..errors import UserError
from .run import ModelRunner

T = TypeVar("T")
# classes with their probabilities, the likeliest first
Answer = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Prediction:
    """Of one picture: classes with their probabilities, the likeliest first, or the answer to a question, and
    all that was `written` for it; or why it cannot be read."""

    path: Path
    classes: Answer = ()
    answer: str | None = None
    written: str = ""
    trouble: str | None = None


def pictures(paths: Sequence[str | Path]) -> list[Path]:
    """Files as they are given, and in their places the pictures in folders, however deep, by name.

    Raises UserError for a folder without any.
    """
    found: list[Path] = []
    known = suffixes()
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = [file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file()]
        if not inside:
            raise UserError(
                f"{path}: no images there; expected files that Pillow reads, such as .jpg and .png"
            )
        found += sorted(inside)
    return found


def predict(
    model: nn.Module,
    preprocessing: Any,
    paths: Sequence[Path],
    *,
    names: Sequence[str] | None = None,
    top: int = 5,
    device: torch.device,
    batch_size: int = 64,
) -> Iterator[Prediction]:
    """A prediction a path, in their order.

    names: of the classes; left out: their numbers

    Raises UserError for a model without a head, where `names` are not as many as the model's classes, or its
    logits are not finite.
    """
    check_top(top)
    if not count_of(model):
        raise UserError(
            f"{type(model).__name__} has no classes, it gives features alone; fit a head first: "
            "recipes/distill.py --config recipes/configs/finetune_head.yaml"
        )
    with ModelRunner(model.to(device), device) as runner:
        yield from predictions(
            paths, preprocessing, lambda images: _answers(runner, images, names, top), batch_size, of_classes
        )


def check_top(top: int) -> None:
    """Raises UserError for fewer than one."""
    if top < 1:
        raise UserError(f"top is {top}; write a number of classes, at least 1")


def of_classes(path: Path, answer: Answer) -> Prediction:
    return Prediction(path, classes=answer)


def predictions(
    paths: Sequence[Path],
    preprocessing: Any,
    answers_of: Callable[[Tensor], Sequence[T]],
    batch_size: int,
    say: Callable[[Path, T], Prediction],
    *,
    upright: bool = False,
) -> Iterator[Prediction]:
    """A prediction a path, in their order; `answers_of` images (N, C, H, W), which decode.

    say:     what is made of an answer
    upright: turned as EXIF says, as pictures with texts are in data
    """
    transform = preprocessing.eval_transform()
    for start in range(0, len(paths), batch_size):
        chosen = paths[start : start + batch_size]
        read = [_read(path, transform, upright) for path in chosen]
        images = [image for image in read if isinstance(image, Tensor)]
        answers = iter(answers_of(torch.stack(images)) if images else ())
        for path, image in zip(chosen, read, strict=True):
            if isinstance(image, Tensor):
                yield say(path, next(answers))
            else:
                yield Prediction(path, trouble=image)


def _read(path: Path, transform: Any, upright: bool) -> Tensor | str:
    """A picture as the model's input; why it cannot be, in a few words."""
    try:
        with Image.open(path) as image:
            image.load()
            if upright:
                turn_upright(image)
            return transform(image)
    except FileNotFoundError:
        return "no such file"
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they meet
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"does not decode as an image ({reason})"


def _answers(runner: ModelRunner, images: Tensor, names: Sequence[str] | None, top: int) -> list[Answer]:
    """The likeliest classes of each image."""
    nothing = torch.zeros(len(images), dtype=torch.int64)
    logits = runner.logits(image_batch(images, nothing))().float().cpu()
    if runner.trouble is not None:
        raise UserError(f"the model's logits are not finite; its weights are damaged ({runner.trouble})")
    count = logits.shape[1]
    if names is not None and len(names) != count:
        raise UserError(f"the model tells {count} classes apart, but {len(names)} have names")
    return likeliest(logits.double().softmax(dim=-1), names or list(map(str, range(count))), top)


def likeliest(probabilities: Tensor, names: Sequence[str], top: int) -> list[Answer]:
    """Of each row of (N, K) the `top` largest, by the names of the columns."""
    found = probabilities.topk(min(top, len(names)))
    return [
        tuple((names[k], p) for k, p in zip(numbers.tolist(), shares.tolist(), strict=True))
        for shares, numbers in zip(found.values, found.indices, strict=True)
    ]
