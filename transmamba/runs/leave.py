"""What a finished run leaves in its folder beside the student: samples, scores, card, results."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..config import load as configs
from ..core.task import Task
from ..ecosystems.find import card_of
from ..ecosystems.folders import STUDENT_FOLDER
from ..evaluation.measured import Measured
from ..reporting.metrics import as_saved, write_results
from ..reporting.model_card import write_model_card
from ..reporting.samples import write_samples
from .pipeline import Pipeline

_NUM_SAMPLES = 24


class NumbersAlone(Pipeline):
    """A pipeline that leaves no student."""

    def save(self, folder: Path) -> None:
        """Nothing; an adapter is merged for the time that it takes."""
        if self.tuned is not None and self.tuned.merges:
            self.tuned.plain()


def leave(folder: Path, pipeline: Pipeline, results: dict[str, Any], measured: Measured) -> None:
    """Everything, and last results.json, whose presence says that the run is finished."""
    task, config = pipeline.parts.task, configs.dump(pipeline.parts.recipe)
    write_samples(folder, measured, _NUM_SAMPLES)
    shown = as_saved(results, task.metrics, splits_of(task))
    card = card_of(pipeline.parts.student)
    if card is not None and pipeline.parts.recipe.leaves == "all":
        write_model_card(folder / STUDENT_FOLDER, card, results=shown, config=config)
    write_results(folder, results, task.metrics, splits_of(task))


def leave_numbers_alone(folder: Path) -> None:
    """Of a finished run: what it had saved, to go on from, is needed no more."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def splits_of(task: Task) -> dict[str, str]:
    """The names of the split that training was watched on, and of that which the results are of."""
    return {"watched": task.watched, "final": task.final}
