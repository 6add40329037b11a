"""easy-VQA (Zhou, 2019): simple questions about one coloured shape, 13 answers.

A check that a model runs, not a benchmark: it has 107 distinct questions, and who knows them alone is right
of two thirds (docs/vqa.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.registry import QUESTIONS
from ...errors import UserError
from ..images.source import check_split, existing
from ..pairs.coco import read_json
from ..pairs.stored import UNREADABLE, Archive, Folder
from .source import QuestionSource
from .stored import Gathered

EXPECTED = "easy-VQA's data: a folder or a .zip of train/questions.json, train/images/ and the same for test"
_SHAPES = ("circle", "rectangle", "triangle")


@QUESTIONS.register("easy_vqa")
@dataclass(frozen=True, kw_only=True)
class EasyVqa:
    """easy-VQA: `train/questions.json` and `test/questions.json`, lists of [question, answer, number], and
    pictures called images/NUMBER.png beside them. The types are yes/no, shape and colour.

    path: the folder, or a .zip of it
    """

    path: str

    def build(self, split: str) -> QuestionSource:
        """Raises UserError on a file that is missing or of another kind, or when no question is left."""
        check_split(split)
        path = existing(self.path, EXPECTED)
        is_zip = path.suffix.lower() == ".zip"
        file = path / split / "questions.json"
        found = _inside(path, f"{split}/questions.json") if is_zip else read_json(file)
        gathered = Gathered(str(file))
        for number, record in enumerate(found if isinstance(found, list) else [found]):
            if not isinstance(record, list) or len(record) != 3:
                raise UserError(f"{file}: record {number} is {record!r:.60}; expected {EXPECTED}")
            question, answer, picture = record
            gathered.add(f"record {number}", question, answer, (f"{picture}.png",), type=_type(answer))
        inside = f"{split}/images"
        return gathered.build(Archive(path, inside) if is_zip else Folder(path / inside))


def _type(answer: Any) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in _SHAPES else "colour"


def _inside(path: Path, name: str) -> Any:
    try:
        return json.loads(Archive(path).opened().read(name))
    except (*UNREADABLE, KeyError, ValueError) as error:
        raise UserError(f"{path}: {name} cannot be read ({error}); expected {EXPECTED}") from None
