"""What `--data` and reader options mean: a task's configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import load as configs
from ..config.registry import READERS, TASKS
from ..errors import UserError
from ..runs.saved import run_of, saved_part
from .words import pairs


def task_of(
    data: str | None, options: Sequence[str], task: str = "image_classification", run: Path | None = None
) -> Any:
    """The task configuration that `--task`, `--data` and reader options mean.

    Without `data`: the task of the run that `run` (RUN or RUN/student) is, with the options in place of its
    reader's. Raises UserError where neither is given.
    """
    if data is not None:
        return configs.parse(TASKS[task], {"data": _reader(data, pairs(options))}, "--data")
    folder = None if run is None else run_of(run)
    if folder is None:
        raise UserError(
            f"{run or 'model'}: no run there whose data to use; write --data FOLDER, or a reader's name"
        )
    saved = configs.dump(saved_part(folder, "task", TASKS))
    if options:  # such as root=, where the data lie elsewhere on this machine
        saved["data"] |= pairs(options)
    return configs.parse(TASKS[saved.pop("name")], saved, f"{folder}, task")


def _reader(data: str, options: dict[str, Any]) -> dict[str, Any]:
    """A reader's name and options: of that name, or as the reader that knows what is there sees it."""
    values, said = {"name": data}, {"name"}
    path = Path(data).expanduser()
    if data not in READERS:
        if not path.exists():
            if path.name != data:
                raise UserError(f"--data {data}: no such file or folder; write one, or a reader's name")
            return {**options, "name": data}  # the registry says which names there are
        found = recognised(path)
        values = configs.dump(found)
        said |= {field.name for field in dataclasses.fields(found) if _is_set(found, field)}
    for key in options.keys() & said:
        raise UserError(f"{key}={options[key]}: --data {data} says that already; write one of the two")
    return {**values, **options}


def recognised(path: Path) -> Any:
    """The configuration of the one reader that knows what `path` holds. Raises UserError where none or
    several do."""
    found = {}
    for name in READERS:
        reader = READERS[name]
        config = reader.recognise(path) if hasattr(reader, "recognise") else None
        if config is not None:
            found[name] = config
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UserError(
            f"--data {path}: {' and '.join(found)} can both read that; write --data {next(iter(found))} and "
            "its options (transmamba list readers)"
        )
    raise UserError(
        f"--data {path}: no reader knows what is there; expected train/CLASS/*.jpg and test/CLASS/*.jpg, or "
        "write --data READER and its options (transmamba list readers)"
    )


def _is_set(config: Any, field: dataclasses.Field[Any]) -> bool:
    value = getattr(config, field.name)
    return value != field.default if field.default is not dataclasses.MISSING else True
