"""What language models recall of their context: the tokens that greedy generation would have to write, each
given those before it (teacher forcing), so that all right is what generation gets right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from ..core.task import Answer, Metric, Outcome, Sample
from ..core.text import LanguageTokenizer
from ..data.text.recall import Recalled
from .requests import Floats, Request, RequestEvaluator

# tokens before an answer that are shown
_SHOWN = 120


class RecallEvaluator(RequestEvaluator):
    """Measures language models on one benchmark of recall, at each of its lengths and in the mean of them.

    split:     its name
    recalled:  all lengths of the first item, then of the next
    tokenizer: of all the models
    """

    def __init__(self, split: str, recalled: Sequence[Recalled], tokenizer: LanguageTokenizer) -> None:
        super().__init__(split)
        self.recalled, self.tokenizer = recalled, tokenizer
        self.lengths = tuple(dict.fromkeys(item.length for item in recalled))
        assert len(recalled) % len(self.lengths) == 0, "every item has all lengths"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        name = self.split
        return (
            Metric(key=f"{name}_acc", label=f"{name} acc %"),
            *(
                Metric(key=f"{name}_{length}_acc", label=f"{name} at {length:,} tokens, acc %")
                for length in self.lengths
            ),
        )

    @cached_property
    def requests(self) -> list[Request]:
        return [Request(item.ids, item.start) for item in self.recalled]

    def _outcome(self, scores: Floats, missed: Floats) -> Outcome:
        asked = np.array([len(item.ids) - item.start for item in self.recalled])
        whole = np.array([item.whole for item in self.recalled])
        right = 100.0 * np.where(whole, missed == 0, 1 - missed / asked)
        by_length = np.where(np.isfinite(scores), right, np.nan).reshape(-1, len(self.lengths))
        items = {"acc": by_length.mean(axis=1)}
        items |= {f"{length}_acc": by_length[:, k] for k, length in enumerate(self.lengths)}
        return self._found(items, asked - missed.astype(np.int64))

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """Items of which student and teacher recall unlike parts."""
        if not {"student", "teacher"} <= outcomes.keys():
            return []
        differ = np.flatnonzero(outcomes["student"].answers != outcomes["teacher"].answers)
        return [self._sample(int(number), outcomes) for number in differ[:count]]

    def _sample(self, number: int, outcomes: Mapping[str, Outcome]) -> Sample:
        item = self.recalled[number]
        asked = len(item.ids) - item.start
        right = {name: int(outcome.answers[number]) for name, outcome in outcomes.items()}
        return Sample(
            group=f"{self.split}: student and teacher differ",
            answers=tuple(
                Answer(name, f"{found} of {asked} tokens", found == asked) for name, found in right.items()
            ),
            label=self.tokenizer.decode(item.ids[item.start :]),
            text=self.tokenizer.decode(item.ids[max(0, item.start - _SHOWN) : item.start]),
        )
