"""VQA v2: Goyal et al., "Making the V in VQA matter", CVPR 2017; also VQA v1, OK-VQA and others in its
format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...config.registry import QUESTIONS
from ...errors import UserError
from ..images.source import check_split, existing
from ..pairs.coco import read_json, records
from .source import QuestionSource
from .stored import Gathered, place_of

EXPECTED = "VQA's files, such as v2_OpenEnded_mscoco_val2014_questions.json with its annotations"
NO_QUESTION = "whose question is not in the file of questions"


@QUESTIONS.register("vqav2")
@dataclass(frozen=True, kw_only=True)
class VqaV2:
    """VQA v2: a file of questions (`{"questions": [{"image_id", "question", "question_id"}]}`) and one of
    annotations (`{"annotations": [{"question_id", "answers": [{"answer"}], "answer_type",
    "question_type"}]}`) a split, ten answers a question, pictures of COCO.

    Its test splits have no annotations, so that val2014 is for testing. Left out, counted and logged:
    questions without annotations, annotations of no question, and those whose picture is not there.

    root:    the folder in which the others are
    train_questions, test_questions: the files
    train_annotations, test_annotations: those of their answers
    train_images, test_images: the folders or .zip files of the pictures
    picture: how pictures are called; `{id}` is the picture's number, and `{subset}` what the file of
        questions calls its `data_subtype`
    types:   whether an item's type is that of its answer (yes/no, number, other) or of its question (what
        color is, how many ...)
    """

    root: str
    train_questions: str = "v2_OpenEnded_mscoco_train2014_questions.json"
    test_questions: str = "v2_OpenEnded_mscoco_val2014_questions.json"
    train_annotations: str = "v2_mscoco_train2014_annotations.json"
    test_annotations: str = "v2_mscoco_val2014_annotations.json"
    train_images: str = "train2014"
    test_images: str = "val2014"
    picture: str = "COCO_{subset}_{id:012d}.jpg"
    types: Literal["answer", "question"] = "answer"

    def __post_init__(self) -> None:
        try:
            self.picture.format(id=1, subset="val2014")
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"picture {self.picture!r} cannot be filled in ({error!r}); write such as "
                "COCO_{subset}_{id:012d}.jpg"
            ) from None

    def build(self, split: str) -> QuestionSource:
        """Raises UserError on a file that is missing or of another kind, or when no question is left."""
        check_split(split)
        root = existing(self.root, f"a folder with {EXPECTED}")
        paths = {
            part: existing(str(root / getattr(self, f"{split}_{part}")), EXPECTED)
            for part in ("questions", "annotations")
        }
        found = read_json(paths["questions"])
        needed = ("image_id", "question", "question_id")
        asked = records(found, "questions", needed, paths["questions"], EXPECTED, known_by="question_id")
        answered = records(
            read_json(paths["annotations"]),
            "annotations",
            ("question_id", "answers"),
            paths["annotations"],
            EXPECTED,
            known_by="question_id",
        )
        gathered = Gathered(str(paths["questions"]))
        self._join(gathered, asked, answered, str(found.get("data_subtype", "")), paths["annotations"])
        return gathered.build(
            place_of(str(root / getattr(self, f"{split}_images")), "the folder or .zip of the pictures")
        )

    def _join(
        self, gathered: Gathered, asked: list[Any], answered: list[Any], subset: str, annotations: Path
    ) -> None:
        """In the order of the questions."""
        said: dict[Any, Mapping[str, Any]] = {record["question_id"]: record for record in answered}
        if len(said) != len(answered):
            raise UserError(f"{annotations}: several annotations are of one question_id")
        for number, record in enumerate(asked):
            known = said.pop(record["question_id"], {})
            try:
                name = self.picture.format(id=record["image_id"], subset=subset)
            except (ValueError, TypeError):  # format's, of a text or of nothing
                raise UserError(
                    f"{gathered.where}: question {number} has the image_id {record['image_id']!r}, which "
                    f"picture: {self.picture} cannot name"
                ) from None
            gathered.add(
                f"question {number}",
                record["question"],
                _answers(known, annotations),
                (name,),
                type=str(known.get(f"{self.types}_type", "")),
            )
        for key in said:
            gathered.left_out.add(NO_QUESTION, f"question_id {key}")


def _answers(known: Mapping[str, Any], annotations: Path) -> list[Any]:
    """Those of all people, in order."""
    answers = known.get("answers", [])
    if not isinstance(answers, list) or not all(
        isinstance(each, Mapping) and "answer" in each for each in answers
    ):
        raise UserError(
            f"{annotations}: question_id {known.get('question_id')} has answers of another form; expected "
            f"{EXPECTED}"
        )
    return [each["answer"] for each in answers]
