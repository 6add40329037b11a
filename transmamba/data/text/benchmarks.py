"""Questions whose answers language models are scored on by likelihood, from their authors' files.

Prompts are those of EleutherAI's lm-evaluation-harness (0.4.13), without examples, so that scores are
comparable with published ones.
"""

from __future__ import annotations

import bz2
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...config.registry import BENCHMARKS
from ...core.text import LanguageTokenizer
from ...errors import UserError


@dataclass(frozen=True)
class Question:
    """What stands before, how it may go on (written after a space), and which of these is right. One choice
    alone asks whether the model would write it."""

    context: str
    choices: tuple[str, ...]
    answer: int = 0


@dataclass(frozen=True, kw_only=True)
class _Benchmark:
    """path: its file, or the folder that holds it
    items: so many of its questions, drawn at random but always the same; all if left out
    """

    # what its file is called in a folder
    _FILES: ClassVar[tuple[str, ...]] = ("*.jsonl",)

    path: str
    items: int | None = None

    def __post_init__(self) -> None:
        if self.items is not None and self.items < 1:
            raise UserError(f"items is {self.items}; write a number of questions, at least 1")

    def build(self, tokenizer: LanguageTokenizer) -> list[Question]:
        """The questions, which do not depend on the tokenizer. Raises UserError for a file that is not there,
        or holds something else."""
        path = Path(os.path.expandvars(self.path)).expanduser()
        questions = list(self._read(_found(path, self._FILES) if path.is_dir() else path))
        if not questions:
            raise UserError(f"{self.path}: has no questions")
        if self.items is None or self.items >= len(questions):
            return questions
        return random.Random(0).sample(questions, self.items)

    def _read(self, path: Path) -> Iterator[Question]:
        for where, row in _rows(path):
            try:
                yield self._question(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                kind = getattr(type(self), "name", "benchmark")
                raise UserError(f"{where}: is no question of {kind} ({error!r})") from error

    def _question(self, row: Any) -> Question:
        raise NotImplementedError


@BENCHMARKS.register("piqa")
@dataclass(frozen=True, kw_only=True)
class Piqa(_Benchmark):
    """Physical common sense (arXiv 1911.11641): which of two ways reaches a goal; valid.jsonl with
    valid-labels.lst beside it.

    path: its file, or the folder that holds it
    items: so many of its questions, drawn at random but always the same; all if left out
    """

    _FILES: ClassVar[tuple[str, ...]] = ("valid.jsonl",)

    def _read(self, path: Path) -> Iterator[Question]:
        labels = _text(path.with_name(f"{path.stem}-labels.lst")).split()
        questions = list(super()._read(path))
        if len(questions) != len(labels):
            raise UserError(f"{path}: has {len(questions)} questions, but there are {len(labels)} labels")
        for question, label in zip(questions, labels, strict=True):
            yield Question(question.context, question.choices, int(label))

    def _question(self, row: Any) -> Question:
        return Question(f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"]))


@BENCHMARKS.register("hellaswag")
@dataclass(frozen=True, kw_only=True)
class HellaSwag(_Benchmark):
    """How a scene goes on, of four endings (arXiv 1905.07830): the authors' .jsonl, or six lines a question
    as text (.txt or .txt.bz2): the scene, the number of the right ending, four endings.

    path: its file, or the folder that holds it
    items: so many of its questions, drawn at random but always the same; all if left out
    """

    _FILES: ClassVar[tuple[str, ...]] = ("*.jsonl", "*.txt.bz2")

    def _read(self, path: Path) -> Iterator[Question]:
        if path.suffix == ".jsonl":
            yield from super()._read(path)
            return
        lines = _text(path).rstrip("\n").split("\n")
        for start in range(0, len(lines), 6):
            six = lines[start : start + 6]
            if len(six) != 6 or not six[1].isdigit():
                raise UserError(f"{path}:{start + 1}: here six lines should make a question of hellaswag")
            scene, right, *endings = six
            yield Question(scene, tuple(endings), int(right))

    def _question(self, row: Any) -> Question:
        scene = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        return Question(_plain(scene), tuple(map(_plain, row["endings"])), int(row["label"]))


@BENCHMARKS.register("arc_easy")
@dataclass(frozen=True, kw_only=True)
class ArcEasy(_Benchmark):
    """School science, of mostly four answers (arXiv 1803.05457): the authors' .jsonl, or rows of `query`,
    `choices` and `gold`.

    path: its file, or the folder that holds it
    items: so many of its questions, drawn at random but always the same; all if left out
    """

    def _question(self, row: Any) -> Question:
        if "query" in row:
            return Question(f"{row['query']}\nAnswer:", tuple(row["choices"]), int(row["gold"]))
        asked = row["question"]
        labels = [choice["label"] for choice in asked["choices"]]
        choices = tuple(choice["text"] for choice in asked["choices"])
        return Question(f"Question: {asked['stem']}\nAnswer:", choices, labels.index(row["answerKey"]))


@BENCHMARKS.register("lambada")
@dataclass(frozen=True, kw_only=True)
class Lambada(_Benchmark):
    """The last word of a passage (arXiv 1606.06031, OpenAI's variant): .jsonl of `text`, or of `context` and
    `continuation`.

    path: its file, or the folder that holds it
    items: so many of its questions, drawn at random but always the same; all if left out
    """

    def _question(self, row: Any) -> Question:
        if "text" in row:
            context, _, word = row["text"].rpartition(" ")
            return Question(context, (word,))
        return Question(row["context"], (row["continuation"],))


def _plain(text: str) -> str:
    """Without the brackets of WikiHow's markup, as the harness has it."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _found(folder: Path, patterns: Sequence[str]) -> Path:
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{folder}: expected one file {' or '.join(patterns)}, found {there}; write its path")
    return found[0]


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, the row) of each line of a .jsonl."""
    for number, line in enumerate(_text(path).split("\n"), 1):  # a text may hold other ends of lines
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: is no JSON ({error})") from error


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (bz2.decompress(data) if path.suffix == ".bz2" else data).decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path}: is not UTF-8 ({error})") from error
