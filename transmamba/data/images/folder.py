"""Images in class folders: root/train/CLASS/*.jpg and root/test (or val, validation)/CLASS/*.jpg."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.registry import READERS
from ...errors import UserError
from ..classes import disagreement
from .decoding import OnError, decode, in_threads, undecodable
from .memory import in_memory
from .source import ImageSource, check_split, existing

# Formats that Pillow knows and does not decode: others' data, films, and programs that Ghostscript would run.
NOT_DECODED = ("BUFR", "GRIB", "HDF5", "WMF", "MPEG", "EPS")
TEST_FOLDERS = ("test", "val", "validation")
LAYOUT = "train/CLASS/*.jpg and test/CLASS/*.jpg"

logger = logging.getLogger("transmamba.data")


@READERS.register("image_folder")
@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """A folder with train/ and test/ (or val/, validation/), each with one folder of images per class.

    Classes are numbered in the sorted order of their names. Images may lie deeper inside their class folder,
    and behind links. Every suffix of a format that Pillow decodes is read; how many files of other kinds are
    left out is logged. Hidden files are left out.

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

    @staticmethod
    def recognise(path: Path) -> ImageFolder | None:
        """Of a folder with class folders in train/ or its test split."""
        splits = [path / name for name in ("train", *TEST_FOLDERS) if (path / name).is_dir()]
        return ImageFolder(root=str(path)) if any(map(_class_folders, splits)) else None


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
        digest = hashlib.sha256(os.fsencode(self.folder))
        # In threads: on a network's file system a look-up is mostly waiting.
        for status in in_threads(range(len(self)), self._status, "looking up images"):
            digest.update(status)
        return digest.hexdigest()

    def _status(self, index: int) -> bytes:
        path = bytes(self.paths[index])
        try:
            found = os.stat(os.path.join(os.fsencode(self.folder), path))  # noqa: PTH116, PTH118
        except OSError:  # a link to nothing, which decoding will refuse
            return b"%s\n" % path
        return b"%s %d %d\n" % (path, found.st_size, found.st_mtime_ns)


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
        difference = disagreement(names[0], classes, names[1], other)
        raise UserError(f"{root}: train and test have different classes ({difference})")


def _list_files(folder: Path, classes: tuple[str, ...]) -> FileSource:
    paths: list[bytes] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    # A link to a class folder, or to one that holds them all, would bring every class into one.
    above = (*folder.absolute().parents, *folder.resolve().parents)
    known = {_real(entry) for entry in (*above, folder, *(folder / name for name in classes))}
    for number, name in enumerate(classes):
        found = pictures_below(folder / name, known, left_out)
        paths += found
        labels += [number] * len(found)
    log_left_out(folder, left_out)
    return FileSource(folder, np.array(paths, dtype=np.bytes_), np.array(labels, dtype=np.int64), classes)


def pictures_below(folder: Path, known: set[tuple[int, int]], left_out: Counter[str]) -> list[bytes]:
    """The pictures in `folder` and below, sorted, by their paths from its parent.

    known:    real folders, as (device, inode), that are not entered
    left_out: counts the suffixes of other files
    Raises UserError when there is none.
    """
    found = []
    for path in _files_below(folder, known):
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
        if suffix in suffixes():
            found.append(os.fsencode(path))
        else:
            left_out[suffix or "without a suffix"] += 1
    if not found:
        raise UserError(f"{folder}: no images; expected .png, .jpg, .tif ... files")
    return sorted(found)


def log_left_out(folder: Path, left_out: Counter[str]) -> None:
    """One line of how many files are no pictures, if there are any."""
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common())
        logger.warning("%s: left out %d files that are no images: %s", folder, left_out.total(), kinds)


@functools.cache
def suffixes() -> frozenset[str]:
    """Those of the formats that Pillow decodes, in lower case: .png, .jpg, .tif ..."""
    known = Image.registered_extensions()
    # An .mpo file is several JPEGs and opens as the first.
    return frozenset(s for s, kind in known.items() if kind in {*Image.OPEN, "MPO"} - {*NOT_DECODED})


def _files_below(folder: Path, known: set[tuple[int, int]]) -> Iterator[str]:
    """Files in `folder` and below, behind links too, by their paths from its parent: of no real folder twice,
    and of none that is `known`."""
    seen = set(known)
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        if parent != str(folder) and _real(parent) in seen:
            folders.clear()
            continue
        seen.add(_real(parent))
        # In order, so that of two links to one folder it is always the same that is followed.
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        inside = os.path.relpath(parent, folder.parent)
        yield from (os.path.join(inside, entry) for entry in files if not entry.startswith("."))  # noqa: PTH118


def _real(folder: str | Path) -> tuple[int, int]:
    """What tells a folder from all others, whatever links lead to it."""
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}); expected a folder of images")
