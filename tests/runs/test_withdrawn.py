"""A recipe that is refused before anything is trained leaves no folder, or the folder as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import run_quietly, tiny_recipe

from transmamba.errors import UserError
from transmamba.training.trainer import Trainer

MISSING: dict[str, dict[str, Any]] = {
    "data": dict(task__data=dict(name="image_folder", root="/no/such/images")),
    "teacher": dict(teacher__model="/no/such/teacher"),
    "stages": dict(teacher=None),
    "student": dict(student__kwargs=dict(dpeth=1)),
}


def refused(recipe: Any, **options: Any) -> None:
    with pytest.raises(UserError):
        run_quietly(recipe, **options)


@pytest.mark.parametrize("what", MISSING)
def test_nothing_is_left(what: str, tmp_path: Path) -> None:
    """Nor the folders above its own."""
    recipe = replace(tiny_recipe(tmp_path, **MISSING[what]), output_dir=str(tmp_path / "a" / "b" / "run"))
    refused(recipe)
    assert not (tmp_path / "a").exists()


def test_what_lay_there_stays(tmp_path: Path) -> None:
    recipe, run = tiny_recipe(tmp_path, **MISSING["data"]), tmp_path / "run"
    run.mkdir()
    refused(recipe)
    assert list(run.iterdir()) == []
    # of a launch that was killed, and of the user
    (run / "config.yaml").write_text("task: a\nstudent: b\nstages: c\n")
    (run / "notes.txt").write_text("dear")
    (run / "student").mkdir()
    refused(recipe)
    assert {path.name for path in run.iterdir()} == {"config.yaml", "notes.txt", "student"}


def test_overwriting(tmp_path: Path) -> None:
    """What was asked to be replaced is gone, and what is no run is not touched."""
    recipe, run = tiny_recipe(tmp_path, **MISSING["data"]), tmp_path / "run"
    run_quietly(tiny_recipe(tmp_path))
    refused(recipe, overwrite=True)
    assert not run.exists() or not any(run.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("mine")
    refused(replace(recipe, output_dir=str(tmp_path / "mine")), overwrite=True)
    assert (tmp_path / "mine" / "config.yaml").read_text() == "mine"


def test_a_run_that_has_begun_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is refused when it is to go on; and it goes on."""
    recipe, run = tiny_recipe(tmp_path), tmp_path / "run"
    whole = run_quietly(tiny_recipe(tmp_path / "whole"))
    real = Trainer._save if hasattr(Trainer, "_save") else Trainer.save

    def saved_and_refused(self: Trainer, *given: Any, **named: Any) -> Any:
        real(self, *given, **named)
        raise UserError("that is enough")

    monkeypatch.setattr(Trainer, real.__name__, saved_and_refused)
    refused(recipe)
    monkeypatch.undo()
    kept = {path.name for path in run.iterdir()}
    assert {"config.yaml", "environment.json", "checkpoints", "metrics.jsonl"} <= kept
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    refused(recipe)
    assert {path.name for path in run.iterdir()} == kept
    (tmp_path / "elsewhere").rename(tmp_path / "teacher")
    found = run_quietly(recipe)
    assert found["student"]["top1"] == whole["student"]["top1"]
    assert json.loads((run / "results.json").read_text())


def test_a_teacher_s_own_run(tmp_path: Path) -> None:
    """Its recipe is refused, or it is trained and then the student's is refused."""
    from transmamba.config import load as configs

    values = configs.dump(tiny_recipe(tmp_path))
    labels = [dict(name="labels", losses=["cross_entropy"], steps=2, lr=1e-3)]
    taught = dict(values, output_dir=str(tmp_path / "taught"), teacher=None, stages=labels)
    (tmp_path / "teacher.yaml").write_text(json.dumps(dict(taught, student=dict(name="nobody"))))
    recipe = replace(tiny_recipe(tmp_path), teacher_recipe=str(tmp_path / "teacher.yaml"))
    refused(recipe)
    assert not (tmp_path / "run").exists() and not (tmp_path / "taught").exists()
