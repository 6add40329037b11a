"""Experts out of a teacher's MLPs, as a recipe has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import UserError, refuse_all
from ...layers.capacity import capacity_problems


@dataclass(frozen=True, kw_only=True)
class Upcycled:
    """Experts in the place of the teacher's MLPs, each a copy of one (sparse upcycling, arXiv 2212.05055).

    count:      experts of a layer
    routing:    `topk_norm`: a token's experts have weights that are brought to a sum of 1, so that the
        student begins as it would with the teacher's MLPs, exactly; `switch`: one expert, by its raw
        probability times
        count, a factor that stays: nearly so, the nearer the smaller `router_std` is
    each:       experts of a token; left out: 2, of switch 1
    router_std: of the numbers that routers begin with; left out: 0.02, of switch 0.001
    redrawn:    share of each expert's neurons that are drawn anew, from normals of the mean and deviation of
        the MLP's matrices, other ones in each expert, so that experts differ from the start (Drop-Upcycling,
        arXiv 2502.19261, has 0.5). The student then begins as another function
    every:      1: all layers' MLPs; 2: every second, the others stay
    capacity:   in training, how many times its even share of a micro-batch's tokens an expert takes at most,
        at least 1; what is beyond is dropped. Left out: none is
    """

    count: int = 8
    routing: Literal["topk_norm", "switch"] = "topk_norm"
    each: int | None = None
    router_std: float | None = None
    redrawn: float = 0.0
    every: int = 1
    capacity: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.count < 2:
            problems.append(f"count is {self.count}; write at least 2 experts")
        problems += self._each_problems()
        if self.router_std is not None and not 0 < self.router_std < float("inf"):
            problems.append(f"router_std is {self.router_std}; write a number above 0, or leave it out")
        if not 0 <= self.redrawn <= 1:
            problems.append(f"redrawn is {self.redrawn}; write a share of the neurons, from 0 to 1")
        if self.every < 1:
            problems.append(f"every is {self.every}; write 1 for all layers, 2 for every second")
        count = None if problems else self.count  # of which a capacity is one, if they are sound
        refuse_all([*problems, *capacity_problems(self.capacity, count, self.chosen)])

    def _each_problems(self) -> list[str]:
        if self.routing == "switch":
            wrong = self.each not in (None, 1)
            return [f"each is {self.each}, but switch has 1 expert a token; leave it out"] if wrong else []
        if self.each == 1:
            return [
                "each is 1, with a weight that is brought to a sum of 1 and is 1 whatever the router says, "
                "so that nothing trains it; write at least 2, or routing switch"
            ]
        if self.chosen < 2 or self.chosen > max(self.count, 2):
            return [f"each is {self.each}; write 2 to {self.count}, the experts of a layer"]
        return []

    @property
    def chosen(self) -> int:
        """Experts of a token."""
        return self.each if self.each is not None else (1 if self.routing == "switch" else 2)

    @property
    def deviation(self) -> float:
        """Of the numbers that routers begin with."""
        return self.router_std or (1e-3 if self.routing == "switch" else 0.02)

    @property
    def scale(self) -> float:
        """The fixed factor of experts' weights: all of them are likely by 1 / count at first."""
        return float(self.count) if self.routing == "switch" else 1.0

    def check_redrawn(self, neurons: int) -> None:
        """Raises UserError for a share of so many neurons that is not even one."""
        if self.redrawn and not round(self.redrawn * neurons):
            raise UserError(
                f"student.experts.redrawn is {self.redrawn}, of {neurons} neurons none; write at least "
                f"{1 / neurons:.2g}, or 0"
            )

    def layers(self, depth: int) -> list[int]:
        """Of so many, those that have experts. Raises UserError where none has."""
        if self.every > depth:
            raise UserError(
                f"student.experts.every is {self.every}, but the student has {depth} layers, of which none "
                f"would have experts; write {depth} at most"
            )
        return list(range(self.every - 1, depth, self.every))
