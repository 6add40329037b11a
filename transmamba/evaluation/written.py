"""What models write, batch by batch, as evaluators of answers in writing gather it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..core.batch import Batch
from ..core.task import Runner
from .once import once

Ints = npt.NDArray[np.int64]


@dataclass
class Tally:
    """Of the batches so far: numbers of questions, and by model what was answered."""

    index: list[Ints] = field(default_factory=list)
    said: dict[str, list[str]] = field(default_factory=dict)

    def add(
        self,
        runners: Mapping[str, Runner],
        batch: Batch,
        tokens: int,
        text: Callable[[Sequence[int]], str],
    ) -> None:
        """At most so many tokens of each model, as texts. Raises UserError for one that does not write."""
        self.index.append(batch.index.numpy())
        for name, runner in runners.items():
            rows = runner.generate(batch, tokens).tolist()
            self.said.setdefault(name, []).extend(text(row) for row in rows)


def gathered(tallies: Sequence[Tally]) -> tuple[Ints, dict[str, list[str]]]:
    """((N,) the numbers of questions, ascending, each model's N answers) of all processes' tallies."""
    kept = [tally for tally in tallies if tally.index]
    index, places = once([part for tally in kept for part in tally.index])
    every = {name: [text for tally in kept for text in tally.said[name]] for name in kept[0].said}
    return index, {name: [said[place] for place in places] for name, said in every.items()}
