"""Who answers questions without their pictures: a table of training questions. What a model is right of
beyond that, it saw."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from ..data.questions.source import Item
from .answers import main_answer

Key = tuple[Hashable, ...]


@dataclass(frozen=True)
class LookupAnswerer:
    """Answers as most training items of the same question do; a question that is not among them as most of
    its type, or else of all. Of choices it takes the one that was right most often."""

    counts: dict[Key, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @classmethod
    def of(cls, items: Iterable[Item]) -> LookupAnswerer:
        """With all that is known from these."""
        answerer = cls()
        for item in items:
            for key in _keys(item):
                answerer.counts[key][main_answer(item.answers)] += 1
        return answerer

    def answer(self, item: Item) -> str:
        for key in _keys(item):
            known = self.counts.get(key, Counter())
            offered = {answer: count for answer, count in known.items() if answer in item.choices}
            found = offered if item.choices else known
            if found:
                return max(found, key=lambda answer: found[answer])
        return item.choices[0] if item.choices else ""

    def knows(self, item: Item) -> bool:
        """Whether that question was among the training items."""
        return _keys(item)[0] in self.counts


def _keys(item: Item) -> tuple[Key, ...]:
    """From the most particular to the most general one."""
    said = tuple(message.content for message in item.earlier)
    asked = (*said, item.question)
    return ("whole", asked, tuple(sorted(item.choices))), ("asked", asked), ("type", item.type), ("all",)
