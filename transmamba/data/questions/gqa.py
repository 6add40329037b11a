"""GQA: Hudson and Manning, "GQA: a new dataset for real-world visual reasoning", CVPR 2019."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...config.registry import QUESTIONS
from ...errors import UserError
from ..images.source import check_split, existing
from ..pairs.coco import need_fields, read_json
from ..pairs.files import expand
from .source import QuestionSource
from .stored import Gathered, place_of

EXPECTED = "GQA's files of questions, such as testdev_balanced_questions.json"


@QUESTIONS.register("gqa")
@dataclass(frozen=True, kw_only=True)
class Gqa:
    """GQA: a file of `{"QUESTION": {"imageId", "question", "answer", "types"}}` a split, pictures called
    IMAGEID.jpg.

    Its test and challenge splits have no answers, so that testdev_balanced is for testing. Left out, counted
    and logged: questions without an answer, and those whose picture is not there.

    root:        the folder in which the others are
    train, test: the files of questions, with `*` for several (train_all_questions/*.json)
    images:      the folder or .zip of the pictures
    types:       which of a question's types counts: structural (verify, query, choose, logical, compare),
        semantic (obj, attr, cat, rel, global) or detailed
    """

    root: str
    train: str = "train_balanced_questions.json"
    test: str = "testdev_balanced_questions.json"
    images: str = "images"
    types: Literal["structural", "semantic", "detailed"] = "structural"

    def build(self, split: str) -> QuestionSource:
        """Raises UserError on a file that is missing or of another kind, or when no question is left."""
        check_split(split)
        root = existing(self.root, f"a folder with {EXPECTED}")
        files = expand(str(root / (self.train if split == "train" else self.test)))
        gathered = Gathered(files[0])
        for file in files:
            path = existing(file, EXPECTED)
            found = read_json(path)
            if not isinstance(found, Mapping):
                raise UserError(f"{path}: a {type(found).__name__}; expected {EXPECTED}")
            for number, record in found.items():
                self._add(gathered, path, f"question {number}", record)
        return gathered.build(place_of(str(root / self.images), "the folder or .zip of the pictures"))

    def _add(self, gathered: Gathered, path: Path, line: str, record: Any) -> None:
        need_fields(record, ("imageId", "question"), f"{path}: {line}", EXPECTED)
        types = record.get("types") or {}
        if not isinstance(types, Mapping):
            raise UserError(f"{path}: {line} has types {types!r:.60}; expected {EXPECTED}")
        gathered.add(
            line,
            record["question"],
            record.get("answer"),
            (f"{record['imageId']}.jpg",),
            type=str(types.get(self.types) or ""),
        )
