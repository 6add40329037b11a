"""COCO's caption files: a list of pictures, a list of captions, and what joins them.

Format: Chen et al., "Microsoft COCO captions: data collection and evaluation server", 2015.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.registry import PAIRS
from ...errors import UserError
from ..images.source import check_split, existing
from .captions import EMPTY, texts
from .source import PairSource
from .stored import Folder, Gathered

EXPECTED = "COCO's caption file, such as captions_train2017.json"
LAYOUT = "annotations/captions_train2017.json, train2017/ and the same for val2017"


@PAIRS.register("coco")
@dataclass(frozen=True, kw_only=True)
class Coco:
    """COCO captions, and data sets in its format.

    A caption file is `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`; pictures
    come in its order, the captions of one too. Left out, counted and logged: pictures without a caption,
    captions of no picture, and pictures that are not there.

    root:                      the folder in which the others are
    train, test:               the caption files; of the official ones val is for testing
    train_images, test_images: the folders of pictures
    """

    root: str
    train: str = "annotations/captions_train2017.json"
    test: str = "annotations/captions_val2017.json"
    train_images: str = "train2017"
    test_images: str = "val2017"

    def build(self, split: str) -> PairSource:
        """Raises UserError on a missing file or folder, a file of another kind, or when no pair is left."""
        check_split(split)
        root = existing(self.root, f"a folder with {LAYOUT}")
        file, folder = (self.train, self.train_images) if split == "train" else (self.test, self.test_images)
        path = existing(str(root / file), f"a caption file; the layout is {LAYOUT}")
        pictures = Folder(existing(str(root / folder), f"a folder of pictures; the layout is {LAYOUT}"))
        found = read_json(path)
        return _gather(
            records(found, "images", ("id", "file_name"), path, EXPECTED, known_by="id"),
            records(found, "annotations", ("image_id", "caption"), path, EXPECTED, known_by="image_id"),
            path,
        ).build(pictures)


def _gather(images: list[Any], annotations: list[Any], path: Path) -> Gathered:
    gathered = Gathered(str(path))
    captions: dict[Any, list[Any]] = {record["id"]: [] for record in images}
    if len(captions) != len(images):
        raise UserError(f"{path}: several images have one id, so that captions cannot be told apart")
    for number, record in enumerate(annotations):
        if record["image_id"] in captions:
            captions[record["image_id"]].append((number, record["caption"]))
        else:
            gathered.left_out.add("of no picture", f"annotation {number}, image_id {record['image_id']}")
    for record in images:
        if not captions[record["id"]]:
            gathered.left_out.add(EMPTY, str(record["file_name"]))
        for number, caption in captions[record["id"]]:
            line = f"annotation {number}"
            gathered.add(str(record["file_name"]), texts(caption, f"{path}: {line}"), line)
    return gathered


def records(
    found: Any, key: str, fields: tuple[str, ...], path: Path, expected: str, *, known_by: str | None = None
) -> list[Any]:
    """The list `key` of a caption file; each record has the `fields`, and in `known_by` a number or a text.
    Raises UserError otherwise, saying what is expected."""
    listed = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(listed, list):
        what = ", ".join(map(str, found)) if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise UserError(f"{path}: no list {key!r}, only {what}; expected {expected}")
    for number, record in enumerate(listed):
        need_fields(record, fields, f"{path}: {key} {number}", expected)
        if known_by is not None and isinstance(record[known_by], list | dict):
            raise UserError(
                f"{path}: {key} {number} has {known_by} {record[known_by]!r:.60}, no number or text; "
                f"expected {expected}"
            )
    return listed


def need_fields(record: Any, fields: tuple[str, ...], where: str, expected: str) -> None:
    """Raises UserError for a record without one of the `fields`, saying where it is and what is expected."""
    keys = list(record) if isinstance(record, Mapping) else []
    for field in fields:
        if field not in keys:
            raise UserError(
                f"{where} has no {field!r}, only {', '.join(keys) or 'other values'}; expected {expected}"
            )


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises UserError when it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a JSON file") from None
