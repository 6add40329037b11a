"""The splits of a reader's data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import UserError


def source_of(split: str, data: Any, opened: dict[str, Any]) -> Any:
    """What a split's items are read from: those held out are among the training ones.

    data: the reader's configuration; opened: what it has built so far, by its own split, which is added to

    Raises UserError for a split that there is not, and as the reader does.
    """
    if split not in ("train", "validation", "test"):
        raise UserError(f"split {split!r}: write train, validation or test")
    own = "test" if split == "test" else "train"
    if own not in opened:
        opened[own] = data.build(own)
    return opened[own]


def open_first(source: Callable[[str], Any], config: Any, evaluated: tuple[str, str], measured: bool) -> None:
    """Open by `source` what a task is about to read, so that what is missing is known before training.

    evaluated: the splits that training is watched on and the finished model is measured on
    measured:  whether they will be read

    Raises UserError as the reader does; of training data only where they will be: whoever evaluates may have
    a test split alone, and is told when they are asked for.
    """
    try:
        source("train")
    except UserError:
        if config.validation or not measured:
            raise
    if measured and "test" in evaluated:
        source("test")
