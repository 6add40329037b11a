"""A run's folder is claimed by one recipe, and what is no run's is left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import pytest

from transmamba.config import load as configs
from transmamba.errors import UserError
from transmamba.runs.folder import claim_folder


def begin(run: Path) -> None:
    """As far as a first checkpoint, before the first row."""
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    (run / "checkpoints" / "step-00000003" / "progress.json").write_text("{}")


def test_a_run_that_never_began_gives_way(tmp_path: Path) -> None:
    """A mistake in a recipe is mended, and the same command is started again."""
    recipe = harness.tiny_recipe(tmp_path)
    claim_folder(tmp_path / "run", recipe, overwrite=False)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    claim_folder(tmp_path / "run", replace(recipe, seed=4), overwrite=False)
    assert "seed: 4" in (tmp_path / "run" / "config.yaml").read_text()


def test_another_run_is_refused_or_overwritten(tmp_path: Path) -> None:
    recipe = harness.tiny_recipe(tmp_path)
    run = tmp_path / "run"
    claim_folder(run, recipe, overwrite=False)
    begin(run)
    claim_folder(run, recipe, overwrite=False)
    other = replace(recipe, seed=4, stages=recipe.stages[:1])
    with pytest.raises(UserError, match=r"holds another run \(seed: 3 there, 4 here; stages.*--overwrite"):
        claim_folder(run, other, overwrite=False)
    assert (run / "checkpoints").is_dir()
    claim_folder(run, other, overwrite=True)
    assert not (run / "checkpoints").exists() and (run / "config.yaml").is_file()


def test_launching_otherwise_is_the_same_run(tmp_path: Path) -> None:
    recipe = harness.tiny_recipe(tmp_path)
    claim_folder(tmp_path / "run", recipe, overwrite=False)
    begin(tmp_path / "run")
    trainer = replace(recipe.trainer, workers=2, log_every=7, save_every=1, keep=5, micro_batch=2)
    claim_folder(tmp_path / "run", replace(recipe, trainer=trainer), overwrite=False)
    with pytest.raises(UserError, match=r"trainer\.global_batch: 8 there, 4 here"):
        claim_folder(
            tmp_path / "run", replace(recipe, trainer=replace(trainer, global_batch=4)), overwrite=False
        )


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_is_refused(tmp_path: Path, overwrite: bool) -> None:
    """With --overwrite too, which would delete it."""
    precious = tmp_path / "thesis.tex"
    precious.write_text("years of work")
    with pytest.raises(UserError, match="holds something that is no run"):
        claim_folder(tmp_path, harness.tiny_recipe(tmp_path.parent / "elsewhere"), overwrite=overwrite)
    assert precious.read_text() == "years of work"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; write a folder"):
        claim_folder(tmp_path / "file", harness.tiny_recipe(tmp_path), overwrite=False)


def test_killed_while_claiming(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml.partial").write_text("output_")
    claim_folder(run, harness.tiny_recipe(tmp_path), overwrite=False)
    assert (run / "config.yaml").is_file()


def refuses_to_train(recipe: Any) -> None:
    import transmamba.runs.run

    def fail(*_: Any) -> None:
        raise AssertionError("it trained again")

    transmamba.runs.run.assemble = fail  # type: ignore[assignment]
    wanted = json.loads((Path(recipe.output_dir) / "results.json").read_text())
    assert harness.run_quietly(recipe) == wanted


def test_a_finished_run_returns_its_results(tmp_path: Path) -> None:
    recipe = harness.tiny_recipe(tmp_path)
    harness.finish(harness.start(harness.run_quietly, recipe))
    harness.finish(harness.start(refuses_to_train, recipe))


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    """A user's notes beside the run and beside its student stay."""
    recipe = harness.tiny_recipe(tmp_path)
    run = tmp_path / "run"
    for name in ("results.json", "metrics.jsonl", "student/config.json", "scratch/student/model.safetensors"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")
    (run / "checkpoints/step-00000001").mkdir(parents=True)
    configs.save_yaml(recipe, run / "config.yaml")
    for name in ("notes.txt", "student/notes.txt"):
        (run / name).write_text("dear")
    claim_folder(run, recipe, overwrite=True)
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert left == {"notes.txt", "student/notes.txt", "config.yaml", "environment.json"}
    assert not (run / "checkpoints").exists() and not (run / "scratch").exists()
