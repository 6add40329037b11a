"""Questions that language models answer in writing, from their authors' files, and what is right."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ...config.registry import GENERATED
from ...errors import UserError
from . import verifiers
from .counted import check_language
from .files import TABLES, found_files, table_rows

# a - behind a digit, a letter or a bracket is no sign
_NUMBER = re.compile(r"(?:(?<![\w).])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARK = "####"
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# where an answer of a few words is over, though the model writes on
_OVER = re.compile(r"[\n.,]")


@dataclass(frozen=True)
class Asked:
    """prompt: what the user says
    label:  the right answer, to look at
    judge:  of an answer, whether each of `parts` is right
    parts:  names of what is judged, one or several
    """

    prompt: str
    label: str
    judge: Callable[[str], tuple[bool, ...]]
    parts: tuple[str, ...] = ("answer",)


@dataclass(frozen=True, kw_only=True)
class _Generated:
    """path: its file, or the folder that holds it
    items: so many of its questions, drawn at random but always the same; all if left out
    tokens: of an answer at most
    """

    # what its file is called in a folder, and the columns that are needed
    FILE: ClassVar[str]
    COLUMNS: ClassVar[tuple[str, ...]]
    # whether parts of an answer are counted by themselves, too
    IN_PARTS: ClassVar[bool] = False
    # what a model that answers on and on asks itself next: the answer ends there
    STOPS: ClassVar[tuple[str, ...]] = ()

    path: str
    items: int | None = None
    tokens: int = 256

    def __post_init__(self) -> None:
        for key, value in (("items", self.items), ("tokens", self.tokens)):
            if value is not None and value < 1:
                raise UserError(f"{key} is {value}; write at least 1")

    def build(self) -> list[Asked]:
        """Raises UserError for a file that is not there, or holds something else."""
        path = Path(self.path).expanduser()
        (file,) = found_files([str(path / self.FILE if path.is_dir() else path)], TABLES)
        asked = []
        for where, row in table_rows(file, self.COLUMNS):
            try:
                asked.append(self._asked(row))
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                kind = getattr(type(self), "name", "benchmark")
                raise UserError(f"{where}: is no question of {kind} ({error!r})") from error
        if not asked:
            raise UserError(f"{self.path}: has no questions")
        few = self.items is not None and self.items < len(asked)
        return random.Random(0).sample(asked, self.items) if few and self.items else asked

    def _asked(self, row: Mapping[str, Any]) -> Asked:
        raise NotImplementedError


@GENERATED.register("gsm8k")
@dataclass(frozen=True, kw_only=True)
class Gsm8k(_Generated):
    """Word problems of grade-school mathematics (arXiv 2110.14168): the authors' test.jsonl. Right is the
    same number after ####, or else the last number of the answer. Asked without examples.

    path: its file, or the folder that holds it
    items: so many of its questions, drawn at random but always the same; all if left out
    tokens: of an answer at most
    """

    FILE = "test.jsonl"
    COLUMNS = ("question", "answer")
    STOPS = ("\nQuestion:",)

    tokens: int = 512

    def _asked(self, row: Mapping[str, Any]) -> Asked:
        right = final_number(row["answer"])
        if _MARK not in row["answer"] or right is None:
            raise UserError(f"the answer has no number after {_MARK}")
        return Asked(f"Question: {row['question']}\nAnswer:", right, partial(_is_number, right))


@GENERATED.register("triviaqa")
@dataclass(frozen=True, kw_only=True)
class TriviaQa(_Generated):
    """General knowledge without a text to look it up in (arXiv 1705.03551): .jsonl of `context` (which asks),
    `answer` and `aliases`. Right is one of these, without case, punctuation and articles, as first line of
    the answer, or as what stands there before a full stop or a comma. Asked without examples.

    path: its file, or the folder that holds it
    items: so many of its questions, drawn at random but always the same; all if left out
    tokens: of an answer at most
    """

    FILE = "triviaqa_sm_sub.jsonl"
    COLUMNS = ("context", "answer", "aliases")

    tokens: int = 32

    def _asked(self, row: Mapping[str, Any]) -> Asked:
        names = frozenset(plain(name) for name in (row["answer"], *row["aliases"])) - {""}
        return Asked(row["context"], row["answer"], partial(_is_named, names))


@GENERATED.register("ifeval")
@dataclass(frozen=True, kw_only=True)
class IfEval(_Generated):
    """Instructions that a program can verify (arXiv 2311.07911): the authors' input_data.jsonl. A prompt is
    right where all of its instructions are followed (strictly: by the answer as it is). Needs langdetect
    where languages are asked for: the extra `eval`.

    path: its file, or the folder that holds it
    items: so many of its questions, drawn at random but always the same; all if left out
    tokens: of an answer at most
    """

    FILE = "input_data.jsonl"
    COLUMNS = ("prompt", "instruction_id_list", "kwargs")
    IN_PARTS = True

    tokens: int = 1280

    def build(self) -> list[Asked]:
        asked = super().build()
        if any(kind in verifiers.LANGUAGE for each in asked for kind in each.parts):
            check_language()
        return asked

    def _asked(self, row: Mapping[str, Any]) -> Asked:
        kinds = tuple(row["instruction_id_list"])
        options = [{k: v for k, v in each.items() if v is not None} for each in row["kwargs"]]
        instructions = tuple(zip(kinds, options, strict=True))
        if not instructions:
            raise UserError("has no instructions")
        for kind, given in instructions:
            verifiers.check(kind, given)
        return Asked(row["prompt"], ", ".join(kinds), partial(_follows, instructions), kinds)


def final_number(text: str) -> str | None:
    """The first number after the last ####, or else the last number, without commas, a $ and zeros that say
    nothing; None where there is none."""
    before, mark, behind = text.rpartition(_MARK)
    found = _NUMBER.findall(behind if mark else text)
    if not found and mark:
        found = _NUMBER.findall(before)[-1:]
    if not found:
        return None
    number = (found[0] if mark else found[-1]).replace(",", "").replace("$", "")
    return str(int(number)) if "." not in number else f"{float(number):.10f}".rstrip("0").rstrip(".")


def plain(text: str) -> str:
    """Without case, punctuation, articles and the spaces between, as TriviaQA's authors compare answers."""
    text = text.lower().replace("_", " ")
    kept = "".join(" " if letter in string.punctuation + "‘’´`" else letter for letter in text)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _is_number(right: str, answer: str) -> tuple[bool, ...]:
    return (final_number(answer) == right,)


def _is_named(names: frozenset[str], answer: str) -> tuple[bool, ...]:
    text = answer.strip()
    found = {plain(text.split("\n")[0]), plain(_OVER.split(text)[0])}
    return (bool(found & names),)


def _follows(instructions: tuple[tuple[str, Mapping[str, Any]], ...], answer: str) -> tuple[bool, ...]:
    return tuple(verifiers.followed(kind, answer, options) for kind, options in instructions)
