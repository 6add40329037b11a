"""The caption files of Flickr8k and Flickr30k, and Karpathy's splits of them and of COCO.

Young et al., "From image descriptions to visual denotations", TACL 2014; Karpathy and Fei-Fei, "Deep
visual-semantic alignments for generating image descriptions", CVPR 2015.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.registry import PAIRS
from ...errors import UserError, suggest
from ..images.source import check_split, existing
from .captions import texts
from .coco import read_json
from .source import PairSource
from .stored import Folder, Gathered

LAYOUT = (
    "Karpathy's .json, lines of IMAGE.jpg#0, a tab and the caption, or lines of image_name| comment_number| "
    "comment; a table with commas is read by {name: table}"
)
_TOKEN = re.compile(r"(.+)#\d+\t(.*)")
_BARRED = re.compile(r"([^|]+)\|[^|]*\|(.*)")
_BARS = re.compile(r"\s*image_name\s*\|\s*comment_number\s*\|\s*comment\s*")
Pair = tuple[str, str, Any]  # where it stands, the picture, its caption or captions


@PAIRS.register("flickr")
@dataclass(frozen=True, kw_only=True)
class Flickr:
    """Flickr8k and Flickr30k, in any of the three kinds of files in which their captions are spread.

    - Karpathy's JSON (dataset_flickr30k.json, also dataset_coco.json): `{"images": [{"filename", "split",
      "sentences": [{"raw"}]}]}`, with `filepath` where pictures lie in several folders.
    - results_20130124.token, Flickr8k.token.txt: lines of `IMAGE.jpg#0`, a tab and the caption.
    - results.csv: lines of `image_name| comment_number| comment`.

    The last two say nothing of splits: `test_names` lists what is for testing and everything else is for
    training, unless `train_names` lists that too. Left out, counted and logged: lines of another form,
    captions that are empty, pictures that are not there.

    captions:                  the file
    images:                    the folder of pictures
    train_splits, test_splits: which of the splits in Karpathy's file make up each of ours
    train_names, test_names:   files with the name of one picture a line
    """

    captions: str
    images: str
    train_splits: tuple[str, ...] = ("train", "restval")
    test_splits: tuple[str, ...] = ("test",)
    train_names: str | None = None
    test_names: str | None = None

    def build(self, split: str) -> PairSource:
        """Raises UserError on a missing file, one of another kind, or when no pair is left."""
        check_split(split)
        path = existing(self.captions, LAYOUT)
        pictures = Folder(existing(self.images, "the folder of the pictures"))
        gathered = Gathered(str(path))
        if path.suffix.lower() == ".json":
            wanted = self.train_splits if split == "train" else self.test_splits
            pairs = _karpathy(read_json(path), wanted, path)
        else:
            pairs = self._chosen(split, list(_lines(path, gathered)), path)
        for line, picture, spoken in pairs:
            gathered.add(picture, texts(spoken, f"{path}: {line}"), line)
        return gathered.build(pictures)

    def _chosen(self, split: str, pairs: list[Pair], path: Path) -> Iterator[Pair]:
        """Those of a split, of a file that does not say."""
        own, other = self.train_names, self.test_names
        if split == "test":
            own, other = other, None
        if own is None and split == "test":
            raise UserError(
                f"{path} does not say which pictures are for testing; write test_names: a file with the name "
                "of one picture a line"
            )
        lists = own or other
        named = _names(lists) if lists else frozenset()
        if named and named.isdisjoint(picture for _, picture, _ in pairs):
            raise UserError(f"{lists}: names no picture of {path} (first: {min(named)})")
        yield from (pair for pair in pairs if (pair[1] in named) == (own is not None))


def _karpathy(found: Any, wanted: tuple[str, ...], path: Path) -> Iterator[Pair]:
    images = found.get("images") if isinstance(found, Mapping) else None
    if not isinstance(images, list) or not all(isinstance(record, Mapping) for record in images):
        raise UserError(f"{path}: no list 'images'; expected Karpathy's file, such as dataset_flickr30k.json")
    for number, record in enumerate(images):
        for field in ("filename", "split", "sentences"):
            if field not in record:
                raise UserError(
                    f"{path}: image {number} has no {field!r}, only {', '.join(record)}; expected Karpathy's "
                    "file, such as dataset_flickr30k.json (COCO's own are read by {name: coco})"
                )
        _check(record, f"{path}: image {number}")
    splits = Counter(str(record["split"]) for record in images)
    if not any(name in splits for name in wanted):
        raise UserError(f"{path}: no split {wanted[0] if wanted else ''!r}{suggest(str(wanted), splits)}")
    for number, record in enumerate(images):
        if record["split"] in wanted:
            picture = "/".join(filter(None, (record.get("filepath"), record["filename"])))
            yield f"image {number}", picture, [sentence.get("raw") for sentence in record["sentences"]]


def _check(record: Mapping[str, Any], where: str) -> None:
    """Raises UserError for an image of another form."""
    for field in ("filepath", "filename"):
        if not isinstance(record.get(field), str | None):
            raise UserError(f"{where}: {field} is {record[field]!r:.60}; write text")
    sentences = record["sentences"]
    if not isinstance(sentences, list) or not all(isinstance(each, Mapping) for each in sentences):
        raise UserError(f"{where}: sentences is {sentences!r:.60}; write a list of objects with 'raw'")


def _lines(path: Path, gathered: Gathered) -> Iterator[Pair]:
    """Each line of the two older kinds; those that are none are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected {LAYOUT}") from None
    bars = _BARS.fullmatch(lines[0]) is not None
    form = _BARRED if bars else _TOKEN
    found = False
    for number, line in enumerate(lines[bars:], 1 + bars):
        if match := form.fullmatch(line):
            found = True
            yield f"line {number}", match[1].strip(), match[2]
        elif line.strip():
            gathered.left_out.add("in a line of another form", f"line {number}")
    if not found:
        raise UserError(f"{path}: no line of a form that is known (first: {lines[0]:.60}); expected {LAYOUT}")


def _names(path: str) -> frozenset[str]:
    """The names in a list of pictures, one a line."""
    file = existing(path, "a file with the name of one picture a line")
    names = frozenset(line.strip() for line in file.read_text(encoding="utf-8").split("\n") if line.strip())
    if not names:
        raise UserError(f"{file}: names no picture; write the name of one a line")
    return names
