"""What is missed, in percent, without having learnt a function: by a guess, and of parity by looking up.

A product of few signs need not be found to be said better than by chance: an x that came before has the same
sign again, and x that differ in few dimensions often have.
"""

from __future__ import annotations

import functools
import json
from typing import Any

# what an example weighs for each dimension in which it differs; the one with which least is missed counts
WEIGHTS = (0.5, 0.3, 0.2, 0.1)


def references(task: dict[str, Any], number: int) -> dict[str, float]:
    """Of function `number` of a task in_context, as config.yaml has it; `guess` is who answers at random, or
    says 0. Of parity also `lookup`, which answers as an equal x before did, else at random, and `smoother`,
    the sign of all answers before, weighted by their distance in dimensions."""
    function = [task["function"], *task["mixed"]][number]
    if function["name"] == "sparse_parity":
        return {"guess": 50.0, **_of_parity(json.dumps(task, sort_keys=True), number)}
    return {"guess": 100 * (1 - 1 / function["pairs"]) if function["name"] == "mqar" else 100.0}


@functools.cache
def _of_parity(said: str, number: int) -> dict[str, float]:
    """On the prompts that runs are measured on, in the last tenth of each, as `missed` is."""
    import numpy as np
    import torch

    from transmamba.config.registry import FUNCTIONS
    from transmamba.tasks.in_context import InContext, InContextConfig

    task = json.loads(said)
    made = [
        FUNCTIONS[each["name"]](**{key: value for key, value in each.items() if key != "name"})
        for each in (task["function"], *task["mixed"])
    ]
    numbers = {key: task[key] for key in ("prompts", "eval_seed") if key in task}
    built = InContext(InContextConfig(function=made[0], mixed=tuple(made[1:]), **numbers), None)
    batch = built.test_batch(number, np.arange(built.config.prompts))
    count = made[number].points
    x, y = batch.inputs["points"][:, : 2 * count : 2], batch.targets["values"][:, : 2 * count : 2, 0]
    missed = torch.zeros(1 + len(WEIGHTS), dtype=torch.float64)
    places = range(count - max(1, count // 10), count)
    for i in places:
        apart, before = (x[:, :i] != x[:, i : i + 1]).sum(dim=-1), y[:, :i].double()
        votes = [(before * (apart == 0)).sum(dim=1)]
        votes += [(before * weight**apart).sum(dim=1) for weight in WEIGHTS]
        every = torch.stack(votes)
        right = torch.where(every.abs() < 1e-12, 0, every.sign()) * y[:, i]  # a tie is no answer
        missed += (1 - right).mean(dim=1) / 2  # half of what has no answer
    lost = (100 * missed / len(places)).tolist()
    return {"lookup": lost[0], "smoother": min(lost[1:])}
