"""A run that is continued by another launch than the one that saved it: what must be as it was, and what is
otherwise from there on.

A step has the same items however it is divided, and what is drawn for a micro-batch follows from its place in
the step. So in micro-batches of the same size another number of processes differs by rounding alone.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .checkpoint import Progress
from .strategies import Strategy


def check_launch(saved: Progress, here: Progress, strategy: Strategy, folder: Path) -> str | None:
    """The line to say before `here`, as this run is launched, continues from `saved`; None where both were
    launched alike. Raises UserError where the strategy cannot load what was saved."""
    was, now = (f"{of.processes} process{'es' * (of.processes > 1)}" for of in (saved, here))
    if saved.strategy not in strategy.reads:
        file = "ddp" if saved.strategy == "plain" else saved.strategy
        raise UserError(
            f"{folder} was started with {saved.strategy}, this is {here.strategy}: its checkpoints are "
            f"others; launch with recipes/accelerate/{file}.yaml again, or --overwrite"
        )
    if saved.processes != here.processes and not strategy.resizes:
        raise UserError(
            f"{folder} was started with {saved.strategy} on {was}, this is {now}: its checkpoints are cut "
            f"for their number; launch with --num_processes {saved.processes} again, or --overwrite"
        )
    if saved.micro_batch != here.micro_batch:
        return (
            f"continued on {now} with {here.micro_batch} items at a time, before on {was} with "
            f"{saved.micro_batch}: steps have the same items, but dropout and mixing draw otherwise from here"
        )
    if saved.processes != here.processes:
        return (
            f"continued on {now}, before on {was}: steps have the same items and draws, summed in another "
            "order, so last digits may differ from here"
        )
    return None
