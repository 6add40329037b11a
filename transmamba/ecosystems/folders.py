"""Which folder a user means: RUN is a run's output_dir, STUDENT is RUN/student; our verbs take either."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

STUDENT_FOLDER = "student"
OPEN_CLIP_CONFIG = "open_clip_config.json"
ADAPTER_CONFIG = "adapter_config.json"
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
    OPEN_CLIP_CONFIG,
    "open_clip_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*_transmamba.py",  # code of a class of ours
    ADAPTER_CONFIG,
    "adapter_model.safetensors",
)


def let_read(folder: Path) -> None:
    """Give the files of weights there the mode of any new file: safetensors' writer, which replaces a
    temporary file, leaves them to their owner alone."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        new = Path(place, "new")
        new.touch()
        mode = new.stat().st_mode & 0o777
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


def remove_model(folder: Path) -> None:
    """The files of a model in `folder`, and nothing else."""
    for pattern in MODEL_FILES:
        for path in folder.glob(pattern):
            path.unlink()


def model_folder(path: str | Path) -> Path | None:
    """The folder below `path` (itself or its `student/`) that holds a config.json or an
    open_clip_config.json, or None."""
    root = Path(path).expanduser()
    for folder in (root, root / STUDENT_FOLDER):
        if any((folder / name).is_file() for name in ("config.json", OPEN_CLIP_CONFIG)):
            return folder
    return None


def no_model_in(folder: Path) -> str:
    """What is there in place of a model, and what to write: a run has its recipe before its student."""
    if all((folder / name).is_file() for name in ("config.yaml", "environment.json")):  # others' may have one
        if (folder / "results.json").is_file():
            return "this run has ended, and has no student: it left numbers alone, or its student was removed"
        return "this run has no student: it has not ended, and the same command goes on with it"
    return f"holds no config.json and no {OPEN_CLIP_CONFIG}; write a run or model folder"


def read_model_config(path: str | Path) -> dict[str, Any]:
    """config.json of a model folder; open_clip_config.json where there is none, or it names no library's
    model. Raises UserError if it is missing or no JSON object."""
    folder = model_folder(path)
    if folder is None:
        raise UserError(f"{path}: no config.json there nor in {STUDENT_FOLDER}/; write a run or model folder")
    theirs = folder / OPEN_CLIP_CONFIG
    config = _read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    return config if names_a_model(config) or not theirs.is_file() else _read_object(theirs)


def names_a_model(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's or transformers': their names go before open_clip's."""
    return "architecture" in config or "model_type" in config


def _read_object(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config
