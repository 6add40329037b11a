"""ScienceQA: Lu et al., "Learn to explain: multimodal reasoning via thought chains for science question
answering", NeurIPS 2022."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.registry import QUESTIONS
from ...errors import UserError, suggest
from ..images.source import check_split, existing
from ..pairs.captions import texts
from ..pairs.coco import need_fields, read_json
from ..staged import Rationale
from .source import QuestionSource
from .stored import UNANSWERED, Gathered, place_of

EXPECTED = "ScienceQA's problems.json and pid_splits.json"


@QUESTIONS.register("scienceqa")
@dataclass(frozen=True, kw_only=True)
class ScienceQa:
    """ScienceQA: multiple choice, half of it with a picture, with lectures and solutions as reasons.

    `problems.json` is `{"PID": {"question", "choices", "answer" (a number), "hint", "image", "subject",
    "lecture", "solution", "split"}}`, `pid_splits.json` says which are in a split, and pictures are
    SPLIT/PID/image.png. A hint stands before its question. The type is the subject. Left out, counted and
    logged: questions whose answer is none of their choices, and those whose picture is not there.

    root:                    the folder of both files
    images:                  the folder or .zip of the pictures in there
    train_split, test_split: which of the splits are ours: train, val, trainval, test, minitest ...
    """

    root: str
    images: str = "images"
    train_split: str = "train"
    test_split: str = "test"

    def build(self, split: str) -> QuestionSource:
        """Raises UserError on a file that is missing or of another kind, or when no question is left."""
        check_split(split)
        root = existing(self.root, f"a folder with {EXPECTED}")
        problems, splits = (
            _mapping(existing(str(root / name), EXPECTED)) for name in ("problems.json", "pid_splits.json")
        )
        name = self.train_split if split == "train" else self.test_split
        if name not in splits:
            raise UserError(f"{root}/pid_splits.json: no split {name!r}{suggest(name, splits)}")
        gathered, pids = Gathered(str(root / "problems.json")), splits[name]
        if not isinstance(pids, list):
            raise UserError(
                f"{root}/pid_splits.json: split {name!r} is {pids!r:.60}, no list; expected {EXPECTED}"
            )
        for pid in pids:
            if str(pid) not in problems:
                raise UserError(f"{gathered.where}: no problem {pid}, which pid_splits.json names")
            _add(gathered, str(pid), problems[str(pid)])
        return gathered.build(place_of(str(root / self.images), "the folder or .zip of the pictures"))


def _mapping(path: Path) -> Mapping[str, Any]:
    found = read_json(path)
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: a {type(found).__name__}; expected {EXPECTED}")
    return found


def _add(gathered: Gathered, pid: str, problem: Any) -> None:
    need_fields(problem, ("question", "choices"), f"{gathered.where}: problem {pid}", EXPECTED)
    choices, answer = problem["choices"], problem.get("answer")
    if not isinstance(choices, list):
        raise UserError(f"{gathered.where}: problem {pid} has choices {choices!r:.60}; expected {EXPECTED}")
    if type(answer) is not int or not 0 <= answer < len(choices):
        gathered.left_out.add(UNANSWERED, f"problem {pid}")
        return
    where = f"{gathered.where}: problem {pid}: "
    reasons = "\n".join(
        text for key in ("lecture", "solution") for text in texts(problem.get(key), where + key, "text")
    )
    name = problem.get("image")
    gathered.add(
        f"problem {pid}",
        [problem.get("hint"), problem["question"]],
        choices[answer],
        (f"{problem.get('split')}/{pid}/{name}",) if name else (),
        choices=choices,
        type=str(problem.get("subject") or ""),
        rationale=Rationale(reasoning=reasons) if reasons else None,
    )
