"""What a finished run leaves in its folder beside the student: samples, scores, card, results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import load as configs
from ..ecosystems.folders import STUDENT_FOLDER
from ..evaluation.run import Measured
from ..reporting.metrics import write_metrics
from ..reporting.model_card import write_model_card
from ..reporting.samples import write_samples
from .folder import RESULTS
from .pipeline import Pipeline

_NUM_SAMPLES = 24


def leave(folder: Path, pipeline: Pipeline, results: dict[str, Any], measured: Measured) -> None:
    """Everything, and last results.json, whose presence says that the run is finished."""
    write_samples(folder, measured, _NUM_SAMPLES)
    write_metrics(folder, pipeline.parts.task.metrics)
    write_model_card(folder / STUDENT_FOLDER, results=results, config=configs.dump(pipeline.parts.recipe))
    partial = folder / f"{RESULTS}.partial"
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.replace(folder / RESULTS)
