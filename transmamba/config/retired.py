"""Keys that recipes had in earlier versions, and what became of them."""

from __future__ import annotations

import fnmatch

_LOST = "deleted: it lost in our own measurements (docs/LOG.md); leave it out"
RETIRED = {
    "trainer.batch_size": "renamed: write global_batch, the items of an optimizer step over all processes, "
    "and micro_batch where a process cannot hold its share of them",
    "trainer.accumulation": "follows from global_batch, micro_batch and the number of processes; write those",
    "init.rotate": _LOST,
    "init.calibrate": _LOST,
    "init.ridge": _LOST,
    "init.rescale": _LOST,
    "stages.*.cloned_lr_scale": _LOST,
    "task.data.shuffled": "is task.shuffle_frames now, for every reader of videos; it measures both orders",
    "*losses.*.triangular": _LOST,
}


def retired(path: str) -> str | None:
    """What became of the key at `path`, such as `stages.0.cloned_lr_scale`; None where it never was one."""
    return next((text for pattern, text in RETIRED.items() if fnmatch.fnmatchcase(path, pattern)), None)
