"""Questions answered in writing: each model writes greedily, by its own library, and a program judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..core.batch import Batch
from ..core.task import Answer, Listing, Metric, Outcome, Pass, Runner, Sample
from ..core.text import Message
from ..data.text.generated import Asked
from ..ecosystems.generation import left_padded
from ..errors import UserError
from .requests import longest_first
from .written import Tally, gathered

Ints = npt.NDArray[np.int64]
# characters of a prompt and of an answer that are shown
_SHOWN = 600


class Writes(Protocol):
    """Of a tokenizer of transformers, what is needed here.

    chats: whether it has a chat template
    """

    @property
    def chats(self) -> bool: ...

    @property
    def context(self) -> int | None: ...

    @property
    def prefix(self) -> tuple[int, ...]: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str: ...

    def words(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Judged:
    """What was answered, and which parts of it are right, by question."""

    said: list[str]
    right: list[tuple[bool, ...]]


@dataclass
class GenerationEvaluator:
    """Measures language models on one benchmark.

    split:     its name
    questions: asked as a user of the chat does, where the tokenizer has a template, else as a text that is
        gone on with
    tokenizer: of all the models
    tokens:    of an answer at most
    in_parts:  whether parts of answers are also counted by themselves
    stops:     an answer is over before any of these
    writes:    what a recipe says where its student does not write while it trains
    """

    writes: ClassVar[str] = "task.validation: 0.01 with task.final_split: test, or leave task.generated out"

    split: str
    questions: Sequence[Asked]
    tokenizer: Writes
    tokens: int
    in_parts: bool = False
    stops: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        name = self.split
        if not self.in_parts:
            return (Metric(key=f"{name}_acc", label=f"{name} acc %"),)
        return (
            Metric(key=f"{name}_prompt_acc", label=f"{name} prompts %"),
            Metric(key=f"{name}_instruction_acc", label=f"{name} instructions %"),
        )

    @cached_property
    def prompts(self) -> list[list[int]]:
        """The questions' tokens. Raises UserError for one that leaves no room for its answer."""
        texts = [question.prompt for question in self.questions]
        if self.tokenizer.chats:
            texts = [self.tokenizer.render([Message("user", text)], prompt=True) for text in texts]
            rows = self.tokenizer.encode(texts)
        else:
            rows = [[*self.tokenizer.prefix, *ids] for ids in self.tokenizer.encode(texts)]
        longest, context = max(map(len, rows)), self.tokenizer.context
        if context is not None and longest + self.tokens > context:
            raise UserError(
                f"{self.split}: a question of {longest} tokens and its answer of {self.tokens} are more than "
                f"the {context} that the model reads; write tokens: {max(1, context - longest)} or less"
            )
        return rows

    def batches(self, passing: Pass) -> Iterator[Batch]:
        """The longest first. Of several processes, one that has no question left asks another's again."""
        for mine, _ in longest_first(np.array([len(ids) for ids in self.prompts]), passing):
            yield self._batch(mine)

    def _batch(self, numbers: Ints) -> Batch:
        inputs = left_padded([self.prompts[number] for number in numbers])
        counts = {"samples": len(numbers), "tokens": int(inputs["text_mask"].sum())}
        return Batch(inputs, {}, torch.from_numpy(numbers.copy()), counts)

    def start(self) -> Tally:
        return Tally()

    def add(self, tally: Tally, runners: Mapping[str, Runner], batch: Batch) -> None:
        """Raises UserError for a model that does not write."""
        tally.add(runners, batch, self.tokens, self._answer)

    def _answer(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.words(ids)
        for stop in self.stops:
            text = text.partition(stop)[0]
        return text

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        index, answers = gathered(tallies)
        assert len(index) == len(self.questions), "every question was asked"
        return {name: self._outcome(said) for name, said in answers.items()}

    def _outcome(self, said: list[str]) -> Outcome:
        right = [question.judge(text) for question, text in zip(self.questions, said, strict=True)]
        items = np.array([100.0 * all(each) for each in right])
        whole, *parts = (metric.key for metric in self.metrics)
        single = [each for several in right for each in several]
        return Outcome(
            metrics={whole: float(items.mean()), **{key: 100.0 * float(np.mean(single)) for key in parts}},
            items={whole: items},
            index=np.arange(len(items), dtype=np.int64),
            exhibits=(self._by_part(right),) if self.in_parts else (),
            answers=Judged(said, right),
        )

    def _by_part(self, right: Sequence[tuple[bool, ...]]) -> Listing:
        asked, followed = Counter[str](), Counter[str]()
        for question, each in zip(self.questions, right, strict=True):
            asked.update(question.parts)
            followed.update(part for part, well in zip(question.parts, each, strict=True) if well)
        rows = [
            (kind, str(asked[kind]), f"{100 * followed[kind] / asked[kind]:.1f}") for kind in sorted(asked)
        ]
        return Listing(f"{self.split}: by kind of instruction", ("kind", "asked", "followed %"), rows)

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """Nothing beside the paired differences."""
        return {}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """Questions that one of student and teacher answers rightly."""
        if not {"student", "teacher"} <= outcomes.keys():
            return []
        student, teacher = (outcomes[name].answers.right for name in ("student", "teacher"))
        pairs = enumerate(zip(student, teacher, strict=True))
        differ = [number for number, (mine, theirs) in pairs if all(mine) != all(theirs)]
        return [self._sample(number, outcomes) for number in differ[:count]]

    def _sample(self, number: int, outcomes: Mapping[str, Outcome]) -> Sample:
        question = self.questions[number]
        answers = [
            Answer(name, outcome.answers.said[number][:_SHOWN], all(outcome.answers.right[number]))
            for name, outcome in outcomes.items()
        ]
        return Sample(
            group=f"{self.split}: student and teacher differ",
            answers=tuple(answers),
            label=question.label,
            text=question.prompt[:_SHOWN],
        )
