"""Invariant 4: a config is frozen once loaded, and what it was lies beside the checkpoints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch

from transmamba.config import load as configs
from transmamba.config.registry import (
    FUNCTIONS,
    LOSSES,
    PAIRS,
    QUESTIONS,
    READERS,
    STUDENTS,
    TASKS,
    TEACHERS,
    TEXTS,
)
from transmamba.runs import folder as run_folder
from transmamba.runs.recipe import Recipe


def parts(value: Any) -> Iterator[Any]:
    """`value` and every dataclass within."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from parts(item)


def test_every_part_of_a_recipe_is_frozen(tmp_path: Path) -> None:
    found = list(parts(harness.tiny_recipe(tmp_path)))
    assert len(found) >= 12
    for part in found:
        for field in dataclasses.fields(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, field.name, None)


@pytest.mark.parametrize(
    "registry",
    [FUNCTIONS, LOSSES, PAIRS, QUESTIONS, READERS, STUDENTS, TASKS, TEACHERS, TEXTS],
    ids=lambda r: r.kind,
)
def test_every_registered_part_is_frozen_and_keyword_only(registry: Any) -> None:
    for name in registry:
        assert registry[name].__dataclass_params__.frozen, name
        assert all(field.kw_only for field in dataclasses.fields(registry[name])), name


def test_a_copied_tree_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = run_folder.environment()["commit"]
    monkeypatch.setenv("TRANSMAMBA_COMMIT", "0123456789ab")
    assert run_folder.environment()["commit"] == "0123456789ab" != asked


def test_a_run_leaves_its_recipe_as_it_was_and_beside_its_checkpoints(tmp_path: Path) -> None:
    recipe = harness.tiny_recipe(tmp_path)
    harness.finish(harness.start(unchanged_by_a_run, recipe))
    run = tmp_path / "run"
    assert (run / "checkpoints").is_dir()
    assert configs.load(Recipe, run / "config.yaml") == recipe
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert {"timm", "accelerate", "numpy"} <= environment["packages"].keys()
    assert environment.keys() >= {"python", "commit"} and environment["device"]
    (run / "environment.json").write_text(json.dumps(environment | {"commit": "earlier"}))
    harness.finish(harness.start(unchanged_by_a_run, recipe))
    kept = json.loads((run / "environment.json").read_text())
    assert kept["commit"] == "earlier", "what was true when the run was made"


def unchanged_by_a_run(recipe: Recipe) -> None:
    before = configs.dump(recipe)
    harness.run_quietly(recipe)
    assert configs.dump(recipe) == before
