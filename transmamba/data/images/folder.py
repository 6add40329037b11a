"""Images in class folders: root/train/CLASS/*.jpg and root/test (or val, validation)/CLASS/*.jpg."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.registry import READERS
from ...errors import UserError
from .decoding import OnError, decode, undecodable
from .memory import in_memory
from .source import ImageSource, check_split, existing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TEST_FOLDERS = ("test", "val", "validation")
LAYOUT = "train/CLASS/*.jpg and test/CLASS/*.jpg"


@READERS.register("image_folder")
@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """A folder with train/ and test/ (or val/, validation/), each with one folder of images per class.

    Classes are numbered in the sorted order of their names. Images may lie deeper inside their class folder;
    hidden files are left out, and so is every suffix but png, jpg, jpeg, webp and bmp.

    root:     the folder
    on_error: refuse an image that does not decode, or skip it (all are decoded once, to know which)
    cache:    ram keeps the decoded images in memory
    """

    root: str
    on_error: OnError = "refuse"
    cache: Literal["none", "ram"] = "none"

    def build(self, split: str) -> ImageSource:
        """Raises UserError on a missing folder, an empty class, or classes that differ between the splits."""
        check_split(split)
        root = existing(self.root, f"a folder with {LAYOUT}")
        folder = _split_folder(root, split)
        classes = _classes(folder)
        _check_agreement(root, split, classes)
        files = _list_files(folder, classes)
        if self.on_error == "skip":
            files = files.without(undecodable(len(files), files.image, files.identity()))
        return in_memory(files) if self.cache == "ram" else files


@dataclass
class FileSource:
    """Encoded images on disk, decoded when asked for. An `ImageSource`.

    paths: (N,) bytes, relative to `folder`; an array, because a list of a million strings is copied by every
           worker as soon as its reference counts change
    """

    folder: Path
    paths: npt.NDArray[np.bytes_]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(bytes(self.paths[index]))

    def image(self, index: int) -> Image.Image:
        path = self.path(index)
        return decode(path, str(path))

    def array(self) -> npt.NDArray[np.uint8] | None:
        return None

    def without(self, broken: npt.NDArray[np.int64]) -> FileSource:
        kept = np.delete(np.arange(len(self)), broken)
        lost = np.setdiff1d(self.labels, self.labels[kept])
        if len(lost):
            raise UserError(f"{self.folder / self.classes[lost[0]]}: none of its images decodes")
        return FileSource(self.folder, self.paths[kept], self.labels[kept], self.classes, len(broken))

    def identity(self) -> str:
        """Changes when any file is added, removed or written to."""
        parts = [str(self.folder)]
        for index in range(len(self)):
            status = self.path(index).stat()
            parts.append(f"{os.fsdecode(bytes(self.paths[index]))} {status.st_size} {status.st_mtime_ns}")
        return "\n".join(parts)


def _split_folder(root: Path, split: str) -> Path:
    wanted = ("train",) if split == "train" else TEST_FOLDERS
    present = [root / name for name in wanted if (root / name).is_dir()]
    # ImageNet as people unpack it has a flat test/ beside val/CLASS.
    for folder in present:
        if _class_folders(folder):
            return folder
    if present:
        raise UserError(f"{present[0]}: no class folders; expected {present[0].name}/CLASS/*.jpg")
    raise UserError(f"{root}: no folder {' or '.join(f'{name}/' for name in wanted)}; expected {LAYOUT}")


def _class_folders(folder: Path) -> list[Path]:
    try:
        return sorted(
            entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}); expected one folder per class"
        ) from None


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(entry.name for entry in _class_folders(folder))


def _check_agreement(root: Path, split: str, classes: tuple[str, ...]) -> None:
    """Both splits must hold the same classes, or their numbers would not mean the same."""
    try:
        other = _classes(_split_folder(root, "test" if split == "train" else "train"))
    except UserError:
        return  # a data set may have no test split; asking for it says so
    if other != classes:
        names = ("train", "test") if split == "train" else ("test", "train")
        only = [
            f"only in {name}: {', '.join(sorted(set(mine) - set(theirs))[:5])}"
            for name, mine, theirs in ((names[0], classes, other), (names[1], other, classes))
            if set(mine) - set(theirs)
        ]
        raise UserError(f"{root}: train and test have different classes ({'; '.join(only)})")


def _list_files(folder: Path, classes: tuple[str, ...]) -> FileSource:
    paths: list[bytes] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        found = _images_below(folder, name)
        if not found:
            raise UserError(f"{folder / name}: no images; expected {', '.join(SUFFIXES)} files")
        paths += found
        labels += [number] * len(found)
    return FileSource(folder, np.array(paths, dtype=np.bytes_), np.array(labels, dtype=np.int64), classes)


def _images_below(folder: Path, name: str) -> list[bytes]:
    found = []
    for parent, folders, files in os.walk(folder / name, followlinks=True, onerror=_unreadable):
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
        for entry in files:
            if entry.lower().endswith(SUFFIXES) and not entry.startswith("."):
                found.append(os.fsencode(os.path.relpath(os.path.join(parent, entry), folder)))  # noqa: PTH118
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}); expected a folder of images")
