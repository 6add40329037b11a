"""Questions about pictures, answered in writing by each model and judged one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..core.batch import Batch
from ..core.task import Answer, Metric, Outcome, Pass, Runner, Sample
from ..data.questions.source import MARK, Item
from ..data.staged import final_answer
from .answers import CHOICE, TRUTH, Verdict, by_type, chosen, judge, kind_of, listing, main_answer, truth_of
from .blind import LookupAnswerer
from .normalised import normalised
from .written import Tally, gathered

Ints = npt.NDArray[np.int64]
Picture = npt.NDArray[np.uint8]
# types of questions beyond which there is a listing of them, and no metric of each
MOST_TYPES = 16
# characters of a question and of an answer that are shown
_SHOWN = 600

METRICS = (
    Metric(key="accuracy", label="answers right (VQA accuracy) %", headline=True),
    Metric(key="exact_match", label="answers exactly right %"),
    Metric(key="unknown", label="no answer %", better="down"),
)
SAME = Metric(key="same_answer", label="student and teacher answer the same %")
LOOKUP = Metric(key="lookup_accuracy", label="questions alone, by a table: right %")


@dataclass(frozen=True)
class Judged:
    """What was answered, and how right it is, by item."""

    said: Sequence[str]
    verdicts: Sequence[Verdict]

    @cached_property
    def soft(self) -> npt.NDArray[np.float64]:
        return np.array([100.0 * verdict.soft for verdict in self.verdicts])


@dataclass(frozen=True)
class Asked:
    """What is asked on one split.

    split:  its name
    index:  (N,) the numbers of the items whose answers are right, ascending
    item:   an item by its number, its pictures not decoded
    read:   this process's batches of prompts, `index` the items' numbers
    words:  the text of tokens
    tokens: of an answer at most
    """

    split: str
    index: Ints
    item: Callable[[int], Item]
    read: Callable[[Pass], Iterator[Batch]]
    words: Callable[[Sequence[int]], str]
    tokens: int

    @cached_property
    def items(self) -> list[Item]:
        return [self.item(int(number)) for number in self.index]


class _Answers:
    """What evaluators of answers have in common.

    writes: what a recipe says where its student does not write while it trains
    """

    writes: ClassVar[str] = "task.writing: final (with validation and final_split: test), or never"

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    @property
    def split(self) -> str:
        return self.asked.split

    @property
    def items(self) -> list[Item]:
        return self.asked.items

    def batches(self, passing: Pass) -> Iterator[Batch]:
        return self.asked.read(passing)

    def start(self) -> Tally:
        return Tally()

    def add(self, tally: Tally, runners: Mapping[str, Runner], batch: Batch) -> None:
        """Raises UserError for a model that does not write."""
        tally.add(runners, batch, self.asked.tokens, lambda ids: self.asked.words(ids).strip())

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        index, answers = gathered(tallies)
        assert np.array_equal(index, self.asked.index), "every question was asked"
        return {name: self.outcome(self._judged(said)) for name, said in answers.items()}

    def _judged(self, said: list[str]) -> Judged:
        return Judged(said, [judge(item, text) for item, text in zip(self.items, said, strict=True)])

    def outcome(self, judged: Judged) -> Outcome:
        raise NotImplementedError

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """Nothing beside the paired differences."""
        return {}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        return []


class AnswersEvaluator(_Answers):
    """Measures models on one split, all and by type; items are judged as docs/vqa.md says.

    twin:    whose twin an item is, by number; None for none: those of which both are asked are one cluster
    lookup:  who answers from the questions alone, and of how many training questions; None for nobody. Made
             when it is needed
    picture: an item's first picture, to look at; None where it has none
    """

    def __init__(
        self,
        asked: Asked,
        twin: Callable[[int], int | None] | None = None,
        lookup: Callable[[], LookupAnswerer] | None = None,
        picture: Callable[[int], Picture | None] | None = None,
    ) -> None:
        super().__init__(asked)
        self.twin, self.lookup, self.picture = twin, lookup, picture

    @cached_property
    def types(self) -> dict[str, str]:
        """The types of questions that have a metric of their own, by its key."""
        found = sorted({item.type for item in self.items} - {""})
        keys = {f"accuracy_{re.sub(r'[^a-z0-9]+', '_', kind.lower()).strip('_')}": kind for kind in found}
        return keys if 1 < len(found) <= MOST_TYPES and len(keys) == len(found) else {}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        of_types = [Metric(key=key, label=f"{kind}: right %") for key, kind in self.types.items()]
        return (*METRICS, SAME, *of_types, *((LOOKUP,) if self.lookup else ()))

    @cached_property
    def cluster(self) -> Ints | None:
        """(N,) the smaller number of an item and of its twin; None where there are no twins."""
        if self.twin is None:
            return None
        asked = set(self.asked.index.tolist())
        others = [self.twin(number) for number in self.asked.index.tolist()]
        if not any(other in asked for other in others):
            return None
        found = [
            number if other is None or other not in asked else min(number, other)
            for number, other in zip(self.asked.index.tolist(), others, strict=True)
        ]
        return np.array(found, dtype=np.int64)

    @cached_property
    def _looked_up(self) -> list[Verdict]:
        assert self.lookup is not None, "asked where there is one"
        answerer = self.lookup()
        return [judge(item, answerer.answer(item)) for item in self.items]

    def outcome(self, judged: Judged) -> Outcome:
        scores = by_type(self.items, judged.verdicts)
        every = scores["all"]
        metrics = {
            "accuracy": every.soft,
            "exact_match": every.exact,
            "unknown": 100.0 * every.unknown / every.asked,
        }
        metrics |= {key: scores[f"type {kind}"].soft for key, kind in self.types.items()}
        exhibits = [listing(f"Answers by type of question, {self.split} split", scores)]
        if self.lookup is not None:
            alone = by_type(self.items, self._looked_up)
            metrics["lookup_accuracy"] = alone["all"].soft
            exhibits.append(listing("The same from the questions alone, by a table of training ones", alone))
        items = {
            "accuracy": judged.soft,
            "exact_match": np.array([100.0 * verdict.exact for verdict in judged.verdicts]),
        }
        return Outcome(metrics, items, self.asked.index, exhibits, answers=judged, cluster=self.cluster)

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """How often both give the same answer, right or wrong."""
        pairs = zip(self.items, a.answers.said, b.answers.said, strict=True)
        return {"same_answer": 100.0 * float(np.mean([meant(i, x) == meant(i, y) for i, x, y in pairs]))}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """Questions that one of student and teacher answers better; of one model, those it is wrong about."""
        scores = [outcome.answers.soft for outcome in outcomes.values()]
        student = outcomes.get("student")
        if student is None:
            return []
        if "teacher" in outcomes:
            far = np.abs(student.answers.soft - outcomes["teacher"].answers.soft)
            group = "student and teacher differ"
        else:
            far, group = 100.0 - np.min(scores, axis=0), "not answered rightly"
        order = [place for place in np.argsort(-far, kind="stable")[:count] if far[place] > 0]
        return [self._sample(group, int(place), outcomes) for place in order]

    def _sample(self, group: str, place: int, outcomes: Mapping[str, Outcome]) -> Sample:
        item = self.items[place]
        answers = [
            Answer(name, each.answers.said[place][:_SHOWN], each.answers.verdicts[place].exact)
            for name, each in outcomes.items()
        ]
        return Sample(
            group=group,
            answers=tuple(answers),
            label=main_answer(item.answers),
            text=asked_text(item)[:_SHOWN],
            picture=None if self.picture is None else self.picture(int(self.asked.index[place])),
        )


class ControlEvaluator(_Answers):
    """The same questions put wrongly: how right the answers are all the same is what a model knows without
    what was taken from it.

    key, label: of its metric
    """

    def __init__(self, asked: Asked, key: str, label: str) -> None:
        super().__init__(asked)
        self.key, self.label = key, label

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (Metric(key=self.key, label=f"{self.label}: right %"),)

    def outcome(self, judged: Judged) -> Outcome:
        scores = by_type(self.items, judged.verdicts)
        return Outcome(
            metrics={self.key: scores["all"].soft},
            items={self.key: judged.soft},
            index=self.asked.index,
            exhibits=(listing(f"Control: {self.label}, {self.split} split", scores),),
            answers=judged,
        )


def meant(item: Item, said: str) -> object:
    """What an answer means: the choice that it names, yes or no, or the words as they are compared."""
    answer, kind = final_answer(said), kind_of(item)
    found: object = None
    if kind == CHOICE:
        found = chosen(answer, item.choices)
    elif kind == TRUTH:
        found = truth_of(answer)
    return normalised(answer) if found is None else (kind, found)


def asked_text(item: Item) -> str:
    """A question to look at, with what was said before it and what there is to choose from."""
    said = [f"{turn.role}: {turn.content}" for turn in item.earlier]
    offered = [" / ".join(item.choices)] if item.choices else []
    return "\n".join([*said, item.question, *offered]).replace(MARK, "").strip()
