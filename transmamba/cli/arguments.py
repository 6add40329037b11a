"""What `--data`, reader options and `task.KEY=value` mean: a task's configuration."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import load as configs
from ..config.file import apply_override
from ..config.registry import PAIRS, QUESTIONS, READERS, TASKS, TEXTS, Registry
from ..ecosystems.sources import nearest_folder
from ..errors import UserError
from ..runs.saved import run_of, saved_part
from .words import below, pairs

# what is known there by looking
_LAYOUTS = {
    "readers": "expected train/CLASS/*.jpg and test/CLASS/*.jpg, or ",
    "pairs": "expected a table (.csv, .jsonl, .parquet ...), tar shards or a folder of pictures, or ",
    "texts": "expected a file of texts (.txt, .jsonl, .jsonl.xz, .parquet ...), or ",
    "questions": "of a file of questions write {option}jsonl test=FILE, or ",
}
# whose readers are which
_OF_TASKS = {
    "image_classification": READERS,
    "image_text": PAIRS,
    "language": TEXTS,
    "questions": QUESTIONS,
}


def task_of(
    data: str | None,
    options: Sequence[str],
    task: str | None = None,
    run: Path | None = None,
    split: str | None = None,
) -> Any:
    """The task configuration that `--task` (left out: image_classification), `--data`, reader options and the
    task's own (`task.KEY=value`) mean.

    Without `data`: the task of the run that `run` (RUN or RUN/student) is, with the options in place of its
    own. Raises UserError where neither is given.

    split: the one that is to be measured, which makes it the final one, with which a task measures all that
        it can; left out: as the task has it
    """
    reader = [word for word in options if not word.startswith("task.")]
    values: dict[str, Any]
    asked, task = task, task or "image_classification"
    if data is not None:
        values, source = {"data": _reader(data, pairs(reader), readers_of(task))}, "--data"
    else:
        folder = None if run is None else run_of(run)
        if folder is None:
            raise UserError(
                f"{run or 'model'}: no run there whose data to use; write --data FOLDER, or a reader's name"
                f"{_near(run)}"
            )
        values, source = configs.dump(saved_part(folder, "task", TASKS)), f"{folder}, task"
        task = values.pop("name")
        if asked not in (None, task):
            raise UserError(
                f"--task {asked}: {run} was trained on the task {task}; leave --task out, or write --data"
            )
        if reader:  # such as root=, where the data lie elsewhere on this machine
            values["data"] |= pairs(reader)
    for word in below("task.", options):
        if split == "train" and word.startswith(("zero_shot", "probe", "benchmarks", "generated")):
            raise UserError(
                f"task.{word} is measured with the split test or validation; leave one of them out"
            )
        key, _, value = word.partition("=")
        if key == "final_split" and split is not None and value != split:
            raise UserError(f"task.final_split={value}: {split} is the split measured; write --split {value}")
        _set(values, word)
    known = {field.name for field in dataclasses.fields(TASKS[task])}
    if "final_split" in known and (split == "test" or (split == "validation" and values.get("validation"))):
        values["final_split"] = split
    return configs.parse(TASKS[task], values, source)


def _near(run: Path | None) -> str:
    """What a folder that is not there was perhaps to be."""
    meant = None if run is None or run.exists() else nearest_folder(run)
    return f"; did you mean {meant}?" if meant else ""


def _set(values: dict[str, Any], word: str) -> None:
    """A task's option, `probe.root=/data/x`, as overrides of a recipe are written; of a list, one item more
    may begin. Where a reader's name goes, a file or a folder may stand that a reader knows.

    Raises UserError for a word that means nothing.
    """
    key, equals, value = word.partition("=")
    steps = key.split(".")
    if len(steps) > 1 and steps[1].isdigit():
        items = values[steps[0]] = values.get(steps[0]) or []
        if isinstance(items, list) and int(steps[1]) == len(items):
            apply_override(values, f"{steps[0]}.{steps[1]}={{}}")
    a_reader = key == "probe" or key.endswith(".data")
    if equals and a_reader and value not in READERS and Path(value).expanduser().exists():
        found = recognised(Path(value).expanduser(), option=f"task.{key}=")
        word = f"{key}={json.dumps(configs.dump(found))}"
    try:
        apply_override(values, word)
    except ValueError as error:
        raise UserError(f"task.{word}: {error}") from error


def readers_of(task: str) -> Registry:
    """The readers that a registered task's `data` is one of. Raises UserError for a task without data of its
    own."""
    hint = typing.get_type_hints(TASKS[task], include_extras=True).get("data")
    found = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, configs.Part)]
    if not found:
        raise UserError(f"the task {task} reads no data that --data could name; leave --data out")
    return found[0].registry


def reader_of(data: str, words: Sequence[str], readers: Registry, option: str) -> Any:
    """The configuration of a reader that an option of the command line and key=value words mean."""
    values = _reader(data, pairs(words), readers, option)
    name = values.pop("name")
    return configs.parse(readers[name], values, option)


def _reader(data: str, options: dict[str, Any], readers: Registry, option: str = "--data") -> dict[str, Any]:
    """A reader's name and options: of that name, or as the reader that knows what is there sees it."""
    values, said = {"name": data}, {"name"}
    path = Path(data).expanduser()
    if data not in readers:
        if not path.exists():
            if path.name != data or path.suffix:
                raise UserError(f"{option} {data}: no such file or folder; write one, or a reader's name")
            tasks = [task for task, known in _OF_TASKS.items() if data in known]
            if tasks and option == "--data":
                named = " or ".join(f"--task {each}" for each in tasks)
                raise UserError(f"--data {data}: that reader goes with {named}; write that")
            return {**options, "name": data}  # the registry says which names there are
        found = recognised(path, readers, f"{option} ")
        values = configs.dump(found)
        said |= {field.name for field in dataclasses.fields(found) if _is_set(found, field)}
    for key in options.keys() & said:
        raise UserError(f"{key}={options[key]}: {option} {data} says that already; write one of the two")
    return {**values, **options}


def recognised(path: Path, readers: Registry = READERS, option: str = "--data ") -> Any:
    """The configuration of the one reader that knows what `path` holds; `option` is what named it. Raises
    UserError where none or several do."""
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
            f"{option}{path}: {' and '.join(found)} can both read that; write {option}{next(iter(found))} "
            f"and its options (transmamba list {_listed(readers)})"
        )
    layout = _LAYOUTS.get(_listed(readers), "").format(option=option)
    raise UserError(
        f"{option}{path}: no reader knows what is there; {layout}write {option}READER and its options "
        f"(transmamba list {_listed(readers)})"
    )


def _listed(readers: Registry) -> str:
    """What `transmamba list` calls them."""
    return {id(PAIRS): "pairs", id(TEXTS): "texts", id(QUESTIONS): "questions"}.get(id(readers), "readers")


def _is_set(config: Any, field: dataclasses.Field[Any]) -> bool:
    value = getattr(config, field.name)
    return value != field.default if field.default is not dataclasses.MISSING else True
