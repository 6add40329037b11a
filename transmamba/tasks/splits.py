"""The splits of a reader's data."""

from __future__ import annotations

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
