"""What evaluators found out about models, and how a student compares with its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.task import Evaluator, Outcome, Sample
from .compare import Difference, paired_differences
from .cost import Cost


@dataclass(frozen=True)
class Measured:
    """What evaluators found out about models, and what those cost.

    outcomes: of each evaluator, by model (`student`, `teacher` ...)
    costs, params: by model; a model that does not say how many parameters it has is left out
    """

    evaluators: Sequence[Evaluator]
    outcomes: Sequence[Mapping[str, Outcome]]
    costs: Mapping[str, Cost]
    params: Mapping[str, int]

    @property
    def names(self) -> set[str]:
        """The models that were measured."""
        return {name for outcomes in self.outcomes for name in outcomes}

    def metrics(self, name: str) -> dict[str, float]:
        """One model's metrics, of all evaluators."""
        found: dict[str, float] = {}
        for outcomes in self.outcomes:
            again = found.keys() & outcomes[name].metrics.keys()
            assert not again, f"two evaluators call a metric {sorted(again)[0]}"
            found |= outcomes[name].metrics
        return found

    def joined(self, other: Measured) -> Measured:
        """With what the same evaluators found out about other models in a pass of their own."""
        outcomes = [{**a, **b} for a, b in zip(self.outcomes, other.outcomes, strict=True)]
        costs, params = {**self.costs, **other.costs}, {**self.params, **other.params}
        return Measured(self.evaluators, outcomes, costs, params)

    def agreement(self) -> dict[str, float]:
        """How far student and teacher agree; nothing where one of them was not measured."""
        found: dict[str, float] = {}
        for evaluator, outcomes in zip(self.evaluators, self.outcomes, strict=True):
            if {"student", "teacher"} <= outcomes.keys():
                found |= evaluator.compare(outcomes["student"], outcomes["teacher"])
        return found

    def differences(self) -> dict[str, Difference]:
        """How much better the student is than its teacher in the metrics that are means over items; nothing
        where one of them was not measured."""
        found: dict[str, Difference] = {}
        for outcomes in self.outcomes:
            if {"student", "teacher"} <= outcomes.keys():
                student, teacher = outcomes["student"], outcomes["teacher"]
                if student.index is not None and teacher.index is not None:
                    assert np.array_equal(student.index, teacher.index), "measured on the same items"
                    found |= paired_differences(teacher.items, student.items, student.cluster)
        return found

    def results(self) -> dict[str, dict[str, Any]]:
        """What results.json holds: each model's metrics and costs, and, of student and teacher, `agreement`
        and `difference` by metric, where there is any."""
        names = list(dict.fromkeys(name for outcomes in self.outcomes for name in outcomes))
        results: dict[str, dict[str, Any]] = {}
        for name in names:
            results[name] = dict(self.metrics(name))
            results[name] |= {"params": self.params[name]} if name in self.params else {}
            results[name] |= vars(self.costs[name]) if name in self.costs else {}
        if agreement := self.agreement():
            results["agreement"] = agreement
        if differences := self.differences():
            results["difference"] = {key: dict(vars(found)) for key, found in differences.items()}
        return results

    def samples(self, count: int) -> list[Sample]:
        """At most `count` items worth a look, of each evaluator."""
        pairs = zip(self.evaluators, self.outcomes, strict=True)
        return [sample for evaluator, found in pairs for sample in evaluator.samples(found, count)]
