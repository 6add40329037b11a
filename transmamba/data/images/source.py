"""What every reader returns: labelled images by number, and the implementation for images held in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import UserError


class ImageSource(Protocol):
    """One split of a data set. Its order never changes: an image's number identifies it across runs.

    labels:  (N,) int64 class numbers
    classes: (K,) class names
    skipped: how many images were left out because they do not decode
    """

    @property
    def labels(self) -> npt.NDArray[np.int64]: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """The picture as stored. Raises UserError naming it when it does not decode."""
        ...

    def array(self) -> npt.NDArray[np.uint8] | None:
        """All pictures, (N, H, W, C), when they are in memory and of one size; None otherwise."""
        ...


def picture(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """(H, W, C) as a picture of mode 'L' or 'RGB'."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


@dataclass
class ArraySource:
    """Images in memory, (N, H, W, C) uint8 with C 1 or 3. An `ImageSource`."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return picture(self.pixels[index])

    def array(self) -> npt.NDArray[np.uint8] | None:
        return self.pixels


@dataclass(frozen=True)
class Renumbered:
    """A source whose classes are numbered as another model numbers them. An `ImageSource`."""

    source: ImageSource
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, source: ImageSource, order: npt.NDArray[np.int64]) -> Renumbered:
        """order: (K,), the new number of each class of `source`."""
        names = tuple(source.classes[number] for number in np.argsort(order))
        return cls(source, order[source.labels], names)

    @property
    def skipped(self) -> int:
        return self.source.skipped

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return self.source.image(index)

    def array(self) -> npt.NDArray[np.uint8] | None:
        return self.source.array()


def check_split(split: str) -> None:
    """Readers know two splits. Raises UserError for another."""
    if split not in ("train", "test"):
        raise UserError(f"split {split!r}: a data reader has the splits 'train' and 'test'")


def existing(path: str, expected: str) -> Path:
    """`path` with ~ and $VARIABLES filled in. Raises UserError, saying what is expected, if it is absent."""
    found = Path(os.path.expandvars(path)).expanduser()
    try:
        found.stat()
    except OSError as error:
        reason = (
            "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        )
        raise UserError(f"{found} {reason}; expected {expected}{unset_in(path)}") from None
    return found


def unset_in(path: str) -> str:
    """What to write, in words, where a path that leads nowhere names a $VARIABLE that is not set; else
    nothing."""
    names = re.findall(r"\$(?:(\w+)|\{(\w+)\})", os.path.expandvars(path))
    first = next((plain or braced for plain, braced in names), None)
    return "" if first is None else f"; {first} is not set: export {first}=FOLDER"


def as_pixels(array: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.uint8]:
    """Checks pictures of shape (N, H, W) or (N, H, W, C) and returns them as (N, H, W, C)."""
    if array.dtype != np.uint8:
        raise UserError(f"{where}: images must be uint8 (0..255), got {array.dtype}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise UserError(f"{where}: images must be (N, H, W) or (N, H, W, 1 or 3), got shape {array.shape}")
    if len(array) == 0:
        raise UserError(f"{where}: holds no images")
    return array  # type: ignore[return-value]


def as_labels(array: npt.NDArray[np.generic], count: int, where: str) -> npt.NDArray[np.int64]:
    """Checks class numbers (N,) or (N, 1) against the number of images and returns them as (N,) int64."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{where}: labels must be integers of shape (N,), got {array.dtype} {array.shape}")
    if len(array) != count:
        raise UserError(f"{where}: {len(array)} labels for {count} images")
    labels = array.astype(np.int64)
    if labels.min() < 0:
        raise UserError(f"{where}: label {labels.min()}: class numbers start at 0; is this split unlabelled?")
    return labels


def numbered_classes(*labels: Iterable[int] | npt.NDArray[np.generic]) -> tuple[str, ...]:
    """Names '0' .. 'K-1' for labels that have none; K is one more than the largest label of all splits."""
    return tuple(str(number) for number in range(1 + max(int(np.max(part)) for part in labels)))  # type: ignore[arg-type]
