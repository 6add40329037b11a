"""What the task `questions` measures on one split."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..core.batch import Batch
from ..core.preprocessing import PicturesAndText
from ..core.task import Evaluator, Metric, Pass
from ..data.hashing import permutation
from ..data.questions.batches import AskedQuestions
from ..data.stream import in_order, load
from ..errors import UserError
from ..evaluation.blind import LookupAnswerer
from ..evaluation.control import other_pictures, other_questions
from ..evaluation.language import LanguageEvaluator
from ..evaluation.questions import AnswersEvaluator, Asked, ControlEvaluator, Picture

if TYPE_CHECKING:
    from .questions import Control, Questions

logger = logging.getLogger("transmamba.evaluation")

Indices = npt.NDArray[np.int64]

_LABELS = {
    "question": "asked another item's question",
    "picture": "shown another item's picture",
    "blank": "shown a blank picture",
}


class QuestionEvaluators:
    """Of one split of a task's data."""

    def __init__(self, task: Questions, split: str) -> None:
        self.task, self.split, self.source = task, split, task.source(split)
        self.index = task.asked(split)

    def all(self, controls: bool) -> tuple[Evaluator, ...]:
        """controls: whether what is measured once, with the final split, is among them"""
        last = self._controls.values() if controls else ()
        return (self._answers if controls else self._watched, *self._likelihood, *last)

    @cached_property
    def unwritten(self) -> tuple[Evaluator, ...]:
        """Nothing that a model has to write for: what a run is about is then how likely right answers are.
        Raises UserError where there are none that could be written so."""
        if not len(self.task.likely(self.split)):
            raise UserError(
                f"rationales is true, but no question of the {self.split} split has one, and writing is "
                f"{self.task.config.writing}, so that nothing is left to measure; write task.writing: "
                "always, or task.rationales: false"
            )
        return (self._likelihoods(LanguageEvaluator.METRICS),)

    @cached_property
    def _watched(self) -> AnswersEvaluator:
        asked = self._asked(self.index, self.index, self.index)
        return AnswersEvaluator(asked, getattr(self.source, "twin", None), picture=self._picture)

    @cached_property
    def _answers(self) -> AnswersEvaluator:
        """With who answers from the questions alone."""
        watched, known = self._watched, self._known
        lookup = None if known is None else partial(self._table, known)
        return AnswersEvaluator(watched.asked, watched.twin, lookup, self._picture)

    @cached_property
    def _likelihood(self) -> tuple[Evaluator, ...]:
        """None where no question has the reasons that would be written."""
        if not len(self.task.likely(self.split)):
            logger.warning(
                "%s split: no question has a rationale; models write their own, and how likely right answers "
                "are is not measured",
                self.split,
            )
            return ()
        # what a run is about is how right its answers are
        metrics = tuple(replace(each, headline=False) for each in LanguageEvaluator.METRICS)
        return (self._likelihoods(metrics),)

    def _likelihoods(self, metrics: tuple[Metric, ...]) -> Evaluator:
        read = partial(self.task.eval_batches, self.split)
        return LanguageEvaluator(self.split, read, metrics=metrics, longest=self.task.asking.longest)

    @cached_property
    def _controls(self) -> dict[str, ControlEvaluator]:
        """Those that change anything: nobody sees the pictures of a model that is shown none."""
        shown, found = self.task.asking.style.pictures, dict[str, ControlEvaluator]()
        for kind in self.task.config.controls:
            if kind != "question" and not shown:
                continue
            if (made := self._made(kind)) is not None:
                found[kind] = made
            else:
                logger.warning("%s split: nothing to exchange for the control %r", self.split, kind)
        return found

    def _made(self, kind: Control) -> ControlEvaluator | None:
        """None where no item can be exchanged for another."""
        items = self._watched.items
        index = questions = pictures = np.arange(len(items))
        if kind == "question":
            index, questions = other_questions(items, self.task.config.split_seed)
            pictures = index
        elif kind == "picture":
            index, pictures = other_pictures(items, self.task.config.split_seed)
            questions = index
        else:
            index = questions = np.array([n for n, item in enumerate(items) if item.pictures], dtype=np.int64)
        if not len(index):
            return None
        shown = None if kind == "blank" else self.index[pictures]
        asked = self._asked(self.index[index], self.index[questions], shown)
        return ControlEvaluator(asked, f"{kind}_control", _LABELS[kind])

    def _asked(self, index: Indices, questions: Indices, pictures: Indices | None) -> Asked:
        task = self.task
        source = AskedQuestions(self.source, task.asking, task.config.room, index, questions, pictures)
        words = task.asking.tokenizer.words
        return Asked(self.split, index, self.source.item, partial(_read, source), words, task.config.room)

    @cached_property
    def _known(self) -> Indices | None:
        """Numbers of training questions; None where they are not asked for, or cannot be had."""
        config = self.task.config
        try:
            indices = self.task.train_indices if config.lookup else None
        except UserError:  # whoever evaluates may have a test split alone
            return None
        return (
            None
            if indices is None
            else indices[permutation(len(indices), config.split_seed)[: config.lookup]]
        )

    def _table(self, known: Indices) -> LookupAnswerer:
        source = self.task.source("train")
        return LookupAnswerer.of(source.item(int(number)) for number in known)

    def _picture(self, number: int) -> Picture | None:
        """The first of an item's pictures, as a model sees it."""
        reads, item = self.task.asking.reads, self.source.item(number)
        if not item.pictures or not isinstance(reads, PicturesAndText):
            return None
        return np.array(reads.pictures.geometry()(item.pictures[0].image()).convert("RGB"))


def _read(source: AskedQuestions, passing: Pass) -> Iterator[Batch]:
    """The prompts `[rank::world]` in order, each once."""
    parts = in_order(np.arange(len(source.index)), passing.batch_size, passing.rank, passing.world)
    return load(source, parts, passing.batch_size, workers=passing.workers)
