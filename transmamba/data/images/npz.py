"""One numpy archive with train_images, train_labels, test_images and test_labels (also MedMNIST's files)."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...config.registry import READERS
from ...errors import UserError
from .source import ArraySource, ImageSource, as_labels, as_pixels, check_split, existing, numbered_classes

LAYOUT = "an .npz with train_images, train_labels, test_images, test_labels"


@READERS.register("npz")
@dataclass(frozen=True, kw_only=True)
class Npz:
    """Images (N, H, W) or (N, H, W, 3) uint8 and labels (N,) or (N, 1), in one .npz file at `path`.

    path: the file, with train_images, train_labels, test_images and test_labels
    """

    path: str

    def build(self, split: str) -> ImageSource:
        """Raises UserError when the file or one of its arrays is missing or has another shape or type."""
        check_split(split)
        path = existing(self.path, LAYOUT)
        archive = _open(path)
        with archive:
            pixels = as_pixels(_array(archive, f"{split}_images", path), f"{path}: {split}_images")
            labels = {
                name: _array(archive, f"{name}_labels", path)
                for name in ("train", "test")
                if name == split or f"{name}_labels" in archive
            }
        own = as_labels(labels[split], len(pixels), f"{path}: {split}_labels")
        return ArraySource(pixels, own, numbered_classes(*labels.values()))

    @staticmethod
    def recognise(path: Path) -> Npz | None:
        """Of a file of that suffix."""
        return Npz(path=str(path)) if path.suffix == ".npz" and path.is_file() else None


def _open(path: Path) -> Any:
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); expected {LAYOUT}") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path}: a single array; expected {LAYOUT}")
    return archive


def _array(archive: Any, name: str, path: Path) -> npt.NDArray[Any]:
    if name not in archive:
        raise UserError(f"{path}: no {name}, only {', '.join(sorted(archive.files))}; expected {LAYOUT}")
    try:
        return archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: {name} cannot be read ({error})") from None
