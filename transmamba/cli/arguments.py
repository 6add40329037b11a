"""What `--data` and reader options mean: a task's configuration."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import load as configs
from ..config.registry import PAIRS, READERS, TASKS, Registry
from ..errors import UserError
from ..runs.saved import run_of, saved_part
from .words import pairs

# what is known there by looking
_LAYOUTS = {
    "readers": "expected train/CLASS/*.jpg and test/CLASS/*.jpg, or ",
    "pairs": "expected a table (.csv, .jsonl, .parquet ...), tar shards or a folder of pictures, or ",
}


def task_of(
    data: str | None, options: Sequence[str], task: str = "image_classification", run: Path | None = None
) -> Any:
    """The task configuration that `--task`, `--data` and reader options mean.

    Without `data`: the task of the run that `run` (RUN or RUN/student) is, with the options in place of its
    reader's. Raises UserError where neither is given.
    """
    if data is not None:
        reader = _reader(data, pairs(options), readers_of(task))
        return configs.parse(TASKS[task], {"data": reader}, "--data")
    folder = None if run is None else run_of(run)
    if folder is None:
        raise UserError(
            f"{run or 'model'}: no run there whose data to use; write --data FOLDER, or a reader's name"
        )
    saved = configs.dump(saved_part(folder, "task", TASKS))
    if options:  # such as root=, where the data lie elsewhere on this machine
        saved["data"] |= pairs(options)
    return configs.parse(TASKS[saved.pop("name")], saved, f"{folder}, task")


def readers_of(task: str) -> Registry:
    """The readers that a registered task's `data` is one of. Raises UserError for a task without data of its
    own."""
    hint = typing.get_type_hints(TASKS[task], include_extras=True).get("data")
    found = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, configs.Part)]
    if not found:
        raise UserError(f"the task {task} reads no data that --data could name; leave --data out")
    return found[0].registry


def _reader(data: str, options: dict[str, Any], readers: Registry) -> dict[str, Any]:
    """A reader's name and options: of that name, or as the reader that knows what is there sees it."""
    values, said = {"name": data}, {"name"}
    path = Path(data).expanduser()
    if data not in readers:
        if not path.exists():
            if path.name != data or path.suffix:
                raise UserError(f"--data {data}: no such file or folder; write one, or a reader's name")
            return {**options, "name": data}  # the registry says which names there are
        found = recognised(path, readers)
        values = configs.dump(found)
        said |= {field.name for field in dataclasses.fields(found) if _is_set(found, field)}
    for key in options.keys() & said:
        raise UserError(f"{key}={options[key]}: --data {data} says that already; write one of the two")
    return {**values, **options}


def recognised(path: Path, readers: Registry = READERS) -> Any:
    """The configuration of the one reader that knows what `path` holds. Raises UserError where none or
    several do."""
    found = {}
    for name in readers:
        reader = readers[name]
        config = reader.recognise(path) if hasattr(reader, "recognise") else None
        if config is not None:
            found[name] = config
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UserError(
            f"--data {path}: {' and '.join(found)} can both read that; write --data {next(iter(found))} and "
            f"its options (transmamba list {_listed(readers)})"
        )
    layout = _LAYOUTS.get(_listed(readers), "")
    raise UserError(
        f"--data {path}: no reader knows what is there; {layout}write --data READER and its options "
        f"(transmamba list {_listed(readers)})"
    )


def _listed(readers: Registry) -> str:
    """What `transmamba list` calls them."""
    return "pairs" if readers is PAIRS else "readers"


def _is_set(config: Any, field: dataclasses.Field[Any]) -> bool:
    value = getattr(config, field.name)
    return value != field.default if field.default is not dataclasses.MISSING else True
