"""Answers that a model writes to questions about pictures, to train its student on, with its reasons where it
gives them: distillation by sequences (Kim and Rush, arXiv 1606.07947)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..core.batch import Batch
from ..core.preprocessing import PicturesAndText
from ..data.hashing import permutation
from ..data.questions.asked import Asking
from ..data.questions.batches import Shown, asked_batch, naming
from ..data.questions.source import Item, QuestionSource
from ..data.staged import final_answer, read_stages
from ..data.text.appended import Appended, check_place
from ..ecosystems.find import load_model
from ..errors import UserError, refuse_all
from ..evaluation.answers import CHOICE, chosen, kind_of
from ..evaluation.cost import HALF, autocast, find_device
from ..evaluation.normalised import normalised
from ..evaluation.run import ModelRunner
from ..tasks.questions import QuestionsConfig
from ..teachers.fingerprint import fingerprint
from ..teachers.teacher import Teacher
from .evaluate import as_run
from .generate_data import Written

logger = logging.getLogger("transmamba.runs")
# questions that are looked at before any is answered
_TRIED = 256
# of these, whose pictures are read, too
_LOOKED = 16
# pictures that do not decode, named in the log one by one
_NAMED = 10
Watch = Callable[[Iterable[int], str], Iterator[int]]


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How questions are answered: by the likeliest words.

    documents:  how many of the training questions; all if left out
    tokens:     of an answer at most; 16 if left out, of one in stages 384
    rationales: in stages, behind its reasons (LLaVA-CoT, arXiv 2411.10440)
    seed:       which questions, and in which order
    batch_size: questions answered at a time. No answer depends on the others, but for rounding
    precision:  of what is computed: bf16, fp16; `no` and fp32 as the weights lie
    """

    documents: int | None = None
    tokens: int | None = None
    rationales: bool = False
    seed: int = 0
    batch_size: int = 32
    precision: Literal["no", "bf16", "fp16", "fp32"] = "no"

    def __post_init__(self) -> None:
        numbers = {key: getattr(self, key) for key in ("documents", "tokens", "batch_size")}
        refuse_all(
            [
                f"{key} is {value}; write at least 1"
                for key, value in numbers.items()
                if value is not None and value < 1
            ]
        )


def generate_answers(
    source: str | Path,
    out: str | Path,
    questions: Any,
    answering: Answering | None = None,
    *,
    device: str | None = None,
    watch: Watch | None = None,
    say: Callable[[str], None] | None = None,
) -> Written:
    """Let a model that writes about pictures answer a reader's training questions, into a .jsonl (compressed
    as its name says) that the reader `answered` reads.

    source:    a LLaVA or a student of one: a folder, a run or an id
    questions: the configuration of a reader of questions, whose train split is taken, and no other

    An interrupted call is gone on with by the same call, to the same bytes; what is whole is left as it is.
    Left out, and counted, are questions that leave no room for an answer (refused where the first ones do
    not) or whose picture does not decode (refused where of the first ones none does), and answers that do
    not end, say nothing or none of the choices, or, with `rationales`, have no stages. Raises UserError as
    `generate_data.generate_data` does.
    """
    answering, path = answering or Answering(), Path(out).expanduser()
    check_place(path)
    target, module = find_device(device), load_model(source)
    model, looks = as_run(module)
    if not isinstance(looks, PicturesAndText):
        raise UserError(
            f"{str(source)!r} does not write about pictures; choose a LLaVA with its tokenizer beside it, or "
            "write --prompts in the place of --questions for one that goes on with texts"
        )
    task = QuestionsConfig(data=questions, rationales=answering.rationales, answer_tokens=answering.tokens)
    built = task.build_training(looks)
    asked = built.source("train")
    chosen_ones = permutation(len(asked), answering.seed)[: answering.documents]
    prompts = _Prompts(asked, built.asking, task.room)
    for number in chosen_ones[:_TRIED].tolist():  # before anything is written
        prompts.of(number)
    prompts.look(chosen_ones[:_LOOKED].tolist())
    made = {
        "teacher": fingerprint(module),
        "questions": _identity(prompts, chosen_ones),
        "of": len(asked),
        **asdict(answering),
        "documents": len(chosen_ones),
        "tokens": task.room,
        "device": target.type,
    }
    file = Appended(path, made)
    already = file.finished
    if not already:
        if say is not None:
            begun = min(len(chosen_ones), file.parts * answering.batch_size)
            on = f", going on after {begun:,}" if begun else ""
            say(f"{source} answers {len(chosen_ones):,} of {len(asked):,} questions{on}")
        kind: Literal["student", "teacher"] = "teacher" if isinstance(model, Teacher) else "student"
        precision = answering.precision if answering.precision in HALF else "no"
        context = functools.partial(autocast, target, precision)
        with ModelRunner(model.to(target), target, context, kind=kind) as runner:
            _write(file, _Writer(runner, prompts), chosen_ones, answering, watch)
    counts = {key: file.counts.get(key, 0) for key in ("texts", "cut", "left_out", "tokens")}
    return Written(path, **counts, already=already)


def _write(file: Appended, writer: _Writer, numbers: Any, answering: Answering, watch: Watch | None) -> None:
    size = answering.batch_size
    starts = range(0, len(numbers), size)[file.parts :]
    with writer.prompts.unread.told(), file.writing() as add, torch.no_grad():
        for start in starts if watch is None else watch(starts, "answering"):
            add(*writer.write(numbers[start : start + size]))
    file.finish()


@dataclass
class _Unread:
    """Pictures that did not decode: the first ones are named in the log, for their files may be mended."""

    count: int = 0

    def add(self, number: int, error: UserError) -> None:
        self.count += 1
        if self.count <= _NAMED:
            logger.warning("question %d is left out: %s", number, error)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Behind it the log says how many more there were."""
        try:
            yield
        finally:
            if (more := self.count - _NAMED) > 0:
                logger.warning("%d more questions are left out: their pictures do not decode", more)


@dataclass(frozen=True)
class _Prompts:
    """The prompts of a source's items, each tokenised once: those that were looked at first are kept until
    they are asked.

    room: tokens of an answer
    """

    source: QuestionSource
    asking: Asking
    room: int
    kept: dict[int, list[int]] = field(default_factory=dict)
    unread: _Unread = field(default_factory=_Unread)

    def look(self, numbers: Sequence[int]) -> None:
        """Raises UserError where no picture of these items decodes: more is wrong than a file."""
        first: UserError | None = None
        for number in numbers:
            try:
                self.source.item(number).images()
                return
            except UserError as error:
                first = first or error
        if first is not None:
            raise UserError(f"of the first {len(numbers)} questions no picture decodes; the first: {first}")

    def of(self, number: int) -> list[int]:
        """Raises UserError, naming it, for an item that cannot be asked."""
        if number not in self.kept:
            with naming(number):
                self.kept[number] = self.asking.prompt(self.source.item(number), self.room)
        return self.kept[number]

    def batch(self, numbers: Sequence[int]) -> tuple[list[int], Batch | None]:
        """(those of `numbers` that can be asked, their batch or None where there are none); their prompts are
        forgotten."""
        rows, pictures = {}, []
        for number in numbers:
            # few that leave no room or whose picture does not decode, among many, are left out
            with contextlib.suppress(UserError):
                prompt = self.of(number)
                item = self.source.item(number)
                try:
                    pictures.append(item.images())
                except UserError as error:
                    self.unread.add(number, error)
                    raise
                rows[number] = prompt
            self.kept.pop(number, None)
        if not rows:
            return [], None
        index = np.array(list(rows), dtype=np.int64)
        shown = Shown(self.asking).of(pictures)
        return list(rows), asked_batch(list(rows.values()), index, shown, self.asking)


@dataclass(frozen=True)
class _Writer:
    runner: ModelRunner
    prompts: _Prompts

    def write(self, numbers: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """The records of these items, and what they count."""
        given, batch = self.prompts.batch(numbers.tolist())
        left_out = len(numbers) - len(given)
        if batch is None:
            return [], {"left_out": left_out}
        rows = self.runner.generate(batch, self.prompts.room).tolist()
        records, counts = [], dict.fromkeys(("texts", "cut", "tokens"), 0) | {"left_out": left_out}
        for number, row in zip(given, rows, strict=True):
            item, length = self.prompts.source.item(number), self._length(row)
            said = None if length is None else self._record(item, row[:length])
            if said is None or length is None:
                counts["left_out"] += 1
                continue
            records.append({"index": number, "question": item.question, **said})
            counts["texts"] += 1
            counts["tokens"] += length
        return records, counts

    @property
    def _asking(self) -> Asking:
        return self.prompts.asking

    def _length(self, row: Sequence[int]) -> int | None:
        """None for one that does not end: nobody is to learn to stop there."""
        return next((place for place, word in enumerate(row) if word == self._asking.tokenizer.eos), None)

    def _record(self, item: Item, ids: Sequence[int]) -> dict[str, Any] | None:
        said = self._asking.tokenizer.words(ids).strip()
        answer, more = final_answer(said), {}
        if self._asking.style.rationales:
            stages = read_stages(said)
            if stages is None or not stages[0].reasoning:
                return None
            more = {"rationale": asdict(stages[0])}
        if kind_of(item) == CHOICE:
            place = chosen(answer, item.choices)
            answer = "" if place is None else item.choices[place]
        return {"answer": answer, **more} if normalised(answer) else None


def _identity(prompts: _Prompts, numbers: Any) -> str:
    """Of the prompts of some of the chosen questions, and of which were chosen."""
    digest = hashlib.sha256(np.asarray(numbers, dtype=np.int64).tobytes())
    for number in numbers[:: max(1, len(numbers) // 64)].tolist():
        kept = prompts.kept.get(number)
        ids = prompts.asking.prompt(prompts.source.item(number)) if kept is None else kept
        digest.update(json.dumps(ids).encode())
    return digest.hexdigest()
