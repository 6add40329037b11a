"""The four idx files of MNIST and its relatives (Fashion-MNIST, KMNIST, ...), compressed or not.

Format: two zero bytes, a type byte (8 is uint8), the number of dimensions, each size as a big-endian uint32,
then the values (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...config.registry import READERS
from ...errors import UserError
from .source import ArraySource, ImageSource, as_labels, as_pixels, check_split, existing, numbered_classes

PREFIX = {"train": "train", "test": "t10k"}
KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
LAYOUT = "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k-, each with or without .gz"
_UINT8 = 8


@READERS.register("idx")
@dataclass(frozen=True, kw_only=True)
class Idx:
    """The files of MNIST and its kin.

    root: a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the t10k- pair, each perhaps .gz
    """

    root: str

    def build(self, split: str) -> ImageSource:
        """Raises UserError when a file is missing, damaged, or does not fit the other."""
        check_split(split)
        root = existing(self.root, f"a folder with {LAYOUT}")
        labels_of = {name: read_idx(_find(root, name, KINDS[1])) for name in PREFIX}
        path = _find(root, split, KINDS[0])
        pixels = as_pixels(read_idx(path), str(path))
        labels = as_labels(labels_of[split], len(pixels), str(_find(root, split, KINDS[1])))
        return ArraySource(pixels, labels, numbered_classes(*labels_of.values()))

    @staticmethod
    def recognise(path: Path) -> Idx | None:
        """Of a folder with such a file."""
        return Idx(root=str(path)) if any(path.glob("*ubyte*")) else None


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array in an idx file of bytes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); expected an idx file") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UINT8 or not content[3]:
        raise UserError(f"{path}: starts with {content[:4].hex()}; expected an idx file of bytes (000008..)")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if len(content) >= start else ()
    if not shape or len(content) - start != math.prod(shape):
        raise UserError(f"{path}: holds {len(content)} bytes, which do not match its header (shape {shape})")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _find(root: Path, split: str, kind: str) -> Path:
    # Some archives write a dot for the second dash: train-images.idx3-ubyte.
    names = [f"{PREFIX[split]}-{kind}", f"{PREFIX[split]}-{kind.replace('-idx', '.idx')}"]
    for name in names:
        for path in (root / name, root / f"{name}.gz"):
            if path.is_file():
                return path
    raise UserError(f"{root}: no {names[0]}[.gz]; expected {LAYOUT}")
