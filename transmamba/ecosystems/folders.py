"""Which folder a user means: RUN is a run's output_dir, STUDENT is RUN/student; our verbs take either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UserError

STUDENT_FOLDER = "student"
# what a model's folder is made of; everything else in it is the user's
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "README.md",
    "subclone.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


def remove_model(folder: Path) -> None:
    """The files of a model in `folder`, and nothing else."""
    for pattern in MODEL_FILES:
        for path in folder.glob(pattern):
            path.unlink()


def model_folder(path: str | Path) -> Path | None:
    """The folder below `path` (itself or its `student/`) that holds a config.json, or None."""
    root = Path(path).expanduser()
    for folder in (root, root / STUDENT_FOLDER):
        if (folder / "config.json").is_file():
            return folder
    return None


def read_model_config(path: str | Path) -> dict[str, Any]:
    """config.json of a model folder. Raises UserError if it is missing or no JSON object."""
    folder = model_folder(path)
    if folder is None:
        raise UserError(f"{path}: no config.json there nor in {STUDENT_FOLDER}/; write a run or model folder")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'}: expected a JSON object, found {type(config).__name__}")
    return config
