"""What words of the command line mean: the data that `--data` names, and options written key=value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..config import load as configs
from ..config.registry import READERS, TASKS
from ..errors import UserError
from ..runs.recipe import Recipe


def task_of(
    data: str | None, options: list[str], task: str = "image_classification", run: Path | None = None
) -> Any:
    """The task configuration that `--task`, `--data` and reader options mean.

    Without `data`: the task of the run folder, at full fraction. Raises UserError where neither is given.
    """
    if data is None:
        saved = (
            None
            if run is None
            else next((p for p in (run, run.parent) if (p / "config.yaml").is_file()), None)
        )
        if saved is None:
            raise UserError(
                f"{run or 'model'}: no run there whose data to use; write --data FOLDER, or a reader's name"
            )
        return configs.load(Recipe, saved / "config.yaml").task
    values: dict[str, Any] = {"name": data}
    path = Path(data).expanduser()
    if data not in READERS:
        if path.exists():
            values = _guess_reader(path)
        elif path.name != data:
            raise UserError(f"--data {data}: no such file or folder; write one, or a reader's name")
    given = pairs(options)
    for key in given.keys() & values.keys():
        raise UserError(f"{key}={given[key]}: --data {data} says that already; write one of the two")
    return configs.parse(TASKS[task], {"data": {**given, **values}}, "--data")


def _guess_reader(path: Path) -> dict[str, str]:
    if path.suffix == ".npz":
        return {"name": "npz", "path": str(path)}
    if any(path.glob("*ubyte*")):
        return {"name": "idx", "root": str(path)}
    if (
        (path / "dataset_dict.json").is_file()
        or (path / "dataset_info.json").is_file()
        or any(any(path.glob(where)) for where in ("*.parquet", "*/*.parquet"))
    ):
        return {"name": "hf_dataset", "path": str(path)}
    return {"name": "image_folder", "root": str(path)}


def pairs(options: list[str]) -> dict[str, Any]:
    """key=value words, each value as YAML reads it. Raises UserError for what is none."""
    found = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"option {option!r} is no key=value")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"option {option!r}: {value!r} is no YAML value; put it in quotes") from error
    return found
