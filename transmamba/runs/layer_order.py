"""In which order a hybrid's layers get their attention back: numbers alone, whoever measures them.

L(S) is how far the student with attention in the layers S is from its teacher (`Score.loss`). What a layer is
worth where S is kept already is gain(k | S) = L(S) - L(S + k).

greedy: each next layer is the one with the largest gain beside those kept, all of them measured again at each
    step: what two layers bring alike counts once, which is the penalty on redundancy, and measured
    [proposal; one layer put back at a time, ranked by KL: GA-S2 of fla-org/hybrid-distillation]
single: each layer is measured once, alone, and a near one is taken to bring the same: the value of k beside
    S is gain(k | nothing) - |gain(k | nothing)| 2^-d, d the distance to the nearest layer of S, so that a
    neighbour counts half [proposal]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Method = Literal["greedy", "single"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of a student, on text and on what is repeated in it, or on answers to questions.

    kl:        KL(teacher ‖ student) in nats a token of text, or of the answers
    recall_kl: the same of words of a span that comes a second time; 0 where none is read
    recalled:  percent of those words that it finds likeliest
    """

    kl: float
    recall_kl: float
    recalled: float

    def loss(self, recall_weight: float) -> float:
        return self.kl + recall_weight * self.recall_kl


# scores of students with attention in these sets of layers
Measure = Callable[[Sequence[tuple[int, ...]]], Sequence[Score]]


@dataclass(frozen=True)
class Order:
    """none: the score without attention; single: of each layer put back alone; order: the layers as they
    were chosen; nested: the scores of the first 1, 2, ... of them together"""

    none: Score
    single: Mapping[int, Score]
    order: tuple[int, ...]
    nested: tuple[Score, ...]


def ordered(measure: Measure, layers: Sequence[int], most: int, weight: float, method: Method) -> Order:
    """The `most` best of the layers, by either method. Of equals the first is taken.

    weight: of recall in a score's loss
    """
    none, *alone = measure([(), *((k,) for k in layers)])
    single = dict(zip(layers, alone, strict=True))
    if method == "single":
        gains = {k: none.loss(weight) - score.loss(weight) for k, score in single.items()}
        order = spread(gains, most)
        sets = [tuple(sorted(order[:count])) for count in range(2, most + 1)]
        nested = [single[order[0]], *(measure(sets) if sets else ())]
        return Order(none, single, order, tuple(nested))
    kept: tuple[int, ...] = ()
    nested, found = [], single
    while True:
        best = min(found, key=lambda k: (found[k].loss(weight), k))
        kept, nested = (*kept, best), [*nested, found[best]]
        if len(kept) == most:
            return Order(none, single, kept, tuple(nested))
        rest = [k for k in layers if k not in kept]
        scores = measure([tuple(sorted((*kept, k))) for k in rest])
        found = dict(zip(rest, scores, strict=True))


def spread(gains: Mapping[int, float], most: int) -> tuple[int, ...]:
    """The layers by their own gains, those near one that is kept for less."""

    def value(k: int) -> float:
        near = max((2.0 ** -abs(k - j) for j in kept), default=0.0)
        return gains[k] - abs(gains[k]) * near

    kept: list[int] = []
    while len(kept) < most:
        kept.append(min((k for k in gains if k not in kept), key=lambda k: (-value(k), k)))
    return tuple(kept)
