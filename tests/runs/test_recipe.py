"""What a recipe may not say: refused when it is read, before anything is trained."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import harness
import pytest

from transmamba.config import load as configs
from transmamba.errors import ConfigError, UserError
from transmamba.runs.folder import UNTRAINED
from transmamba.runs.recipe import Recipe
from transmamba.runs.run import run

PART = dict(losses=["cross_entropy"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(stages=[]), "stages: empty; give at least one"),
        (dict(stages=[PART | dict(percent=30)]), "one stage needs steps, epochs, samples or tokens"),
        (dict(stages=[PART | dict(percent=30), PART | dict(percent=60)]), "one stage needs steps"),
        (dict(stages=[PART | dict(steps=5), PART | dict(percent=50)] * 2), "one stage needs steps"),
        (
            dict(stages=[PART | dict(steps=1, rates={"mixer": 2})]),
            "stages.0.rates.mixer: no group .*'mixers'",
        ),
        (dict(stages=[PART | dict(steps=1, trainable=["heads"])]), "stages.0.trainable: 'heads' is .*'head'"),
        (dict(seed=-1), "seed: -1; write a whole number from 0 to 4294967295"),
        (dict(seed=2**63), "seed: 9223372036854775808; write a whole number from 0"),
        (dict(scratch=dict(losses=[])), "scratch.losses: empty; name at least one"),
        (
            dict(teacher=None, init=None, teacher_recipe="teacher.yaml"),
            "teacher_recipe: given, but no teacher",
        ),
    ],
)
def test_refused_when_read(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        harness.tiny_recipe(tmp_path, **changes)
    assert isinstance(caught.value, ConfigError) and len(caught.value.problems) == 1


@pytest.mark.parametrize("changes", ["init=null", "init.layers=0", "scratch={}"])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("student.half_life=fitted", "student.half_life is fitted, to a teacher's heads, but init is null"),
        (
            "student.experts={count: 4, redrawn: 0.5}",
            "student.experts.redrawn is 0.5, a share of the teacher's neurons, but init is null",
        ),
    ],
)
def test_what_is_of_a_teacher_needs_its_weights(asked: str, message: str, changes: str) -> None:
    path = Path(__file__).parents[2] / "recipes" / "configs" / "llama_to_hybrid_debug.yaml"
    with pytest.raises(UserError, match=message) as caught:
        configs.load(Recipe, path, [asked, changes])
    assert isinstance(caught.value, ConfigError) and len(caught.value.problems) == 1
    configs.load(Recipe, path, [asked])
    configs.load(Recipe, path, [changes])


TIMM = dict(name="timm", model="vit_tiny_patch16_224", kwargs=harness.TEACHER)


def taught(place: Path, teaching: dict[str, Any], **changes: Any) -> Recipe:
    """A recipe whose teacher is a ViT that another recipe trains in teacher_run."""
    made = str(place / "teacher_run")
    whole = dict(output_dir=made, teacher=None, init=None, student=TIMM, stages=[PART | dict(steps=2)])
    configs.save_yaml(harness.tiny_recipe(place, **whole | teaching), place / "teaching.yaml")
    return harness.tiny_recipe(
        place, **dict(teacher__model=made, teacher_recipe=str(place / "teaching.yaml")) | changes
    )


HEADLESS = [dict(losses=["kl"], trainable="head", rates={"mixers": 2.0}, steps=1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(stages=[PART | dict(steps=1), dict(losses=["contrastive"], steps=1)]), "contrastive compares"),
        (dict(stages=HEADLESS), "rates.mixers is 2.0, but the stage trains nothing of this group"),
        (dict(student=dict(name="ssd_vit", kwargs=dict(depth=-1))), "depth"),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_stages_that_cannot_be_are_refused_before_the_teacher_is_trained(
    changes: dict[str, Any], message: str, stored: bool, tmp_path: Path
) -> None:
    """And before anything of it is stored."""
    if stored:
        inner = dict(name="timm_vit", model=str(tmp_path / "teacher_run"))
        changes = changes | dict(teacher=dict(name="stored", folder=str(tmp_path / "store"), teacher=inner))
    with pytest.raises(UserError, match=message):
        run(taught(tmp_path, {}, **changes), quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "teaching.yaml"}


def test_a_folder_that_the_teacher_cannot_have_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transmamba.runs.teaching.assemble", lambda *_, **__: pytest.fail("models are made"))
    recipe, made = taught(tmp_path, {}), tmp_path / "teacher_run"
    made.mkdir()
    (made / "mine.txt").touch()
    with pytest.raises(UserError, match=r"teaching\.yaml: .*teacher_run' holds something that is no run"):
        run(recipe, quiet=True)
    (made / "mine.txt").unlink()
    other = harness.tiny_recipe(tmp_path, output_dir=str(made))
    configs.save_yaml(other, made / "config.yaml")
    (made / "metrics.jsonl").write_text("{}")
    with pytest.raises(UserError, match="holds another run"):
        run(recipe, quiet=True)


@pytest.mark.parametrize("written", ["{}/below/../teacher_run", "{}/link/teacher_run", "~/teacher_run"])
def test_the_teacher_s_folder_may_be_written_in_another_way(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    odd = [PART | dict(steps=1, name="a\0b"), dict(losses=["contrastive"], steps=1, name="~nobody/x")]
    with pytest.raises(UserError, match="contrastive compares"):
        run(taught(tmp_path, {}, teacher__model=written.format(tmp_path), stages=odd), quiet=True)
    assert not (tmp_path / "teacher_run").exists()


@pytest.mark.parametrize(
    ("losses", "hidden", "changes", "message"),
    [
        (["mixer"], {}, {}, "reads what is inside the teacher's layers, which is not stored"),
        (["feature"], {"image": [1]}, {}, "after sublayers 3, which are not stored"),
        (["kl"], {"image": [9]}, {}, "image has no sublayer 9"),
        (["kl"], {}, dict(task__mixup=0.2), "the task mixes its batches"),
        (["kl"], {"image": [1]}, dict(init=dict(fold=True)), "init.fold changes the tokens"),
    ],
)
def test_what_a_store_will_not_have_is_refused_before_the_teacher_is_trained(
    losses: list[str], hidden: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    inner = dict(name="timm_vit", model=str(tmp_path / "teacher_run"))
    stored = dict(name="stored", folder=str(tmp_path / "store"), teacher=inner, hidden=hidden)
    stages = [dict(losses=losses, steps=1)]
    with pytest.raises(UserError, match=message):
        run(taught(tmp_path, {}, teacher=stored, stages=stages, **changes), quiet=True)
    assert not (tmp_path / "teacher_run").exists() and not (tmp_path / "store").exists()


def test_a_teacher_s_own_stored_teacher_is_not_stored_for_a_look(tmp_path: Path) -> None:
    inner = dict(name="timm_vit", model=str(tmp_path / "teacher"))
    stored = dict(name="stored", folder=str(tmp_path / "store"), teacher=inner)
    teaching = dict(teacher=stored, stages=[dict(losses=["kl"], steps=1)])
    with pytest.raises(UserError, match="contrastive compares"):
        run(taught(tmp_path, teaching, stages=[dict(losses=["contrastive"], steps=1)]), quiet=True)
    assert not (tmp_path / "store").exists()


def test_a_launch_that_was_killed_while_it_checked_leaves_nothing_in_the_end(tmp_path: Path) -> None:
    """Though its teacher was trained by itself since, and nothing is checked again."""
    recipe = taught(tmp_path, dict(trainer__workers=0))
    harness.run_quietly(configs.load(Recipe, tmp_path / "teaching.yaml"))
    left = tmp_path / "run" / UNTRAINED
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    configs.save_yaml(recipe, tmp_path / "run" / "config.yaml")
    harness.run_quietly(recipe)
    assert not left.exists()


def test_the_teacher_is_trained_as_it_is_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, and so is its student; what a launch was killed in while it checked is no hindrance."""
    recipe = taught(tmp_path, dict(trainer__workers=0))
    left = tmp_path / "run" / UNTRAINED / "config.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    configs.save_yaml(recipe, tmp_path / "run" / "config.yaml")
    found = harness.without_timing(harness.run_quietly(recipe))
    assert not left.parent.exists()
    monkeypatch.setattr("transmamba.runs.run.check_taught", lambda *_: None)
    other = taught(tmp_path, dict(trainer__workers=0), output_dir=str(tmp_path / "again"))
    shutil.rmtree(tmp_path / "teacher_run")
    assert harness.without_timing(harness.run_quietly(other)) == found


def test_a_teacher_whose_training_has_begun_is_not_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models would be made, and one written, each time that a launch goes on."""
    recipe, looked = taught(tmp_path, dict(trainer__workers=0)), []
    monkeypatch.setattr("transmamba.runs.run.check_taught", lambda *_: looked.append(1))
    harness.run_quietly(recipe)
    assert looked == [1]
    (tmp_path / "teacher_run" / "results.json").unlink()  # as if it had been killed after its last checkpoint
    harness.run_quietly(dataclasses.replace(recipe, output_dir=str(tmp_path / "again")))
    assert looked == [1]


def test_a_teacher_s_recipe_is_divided_before_it_is_trained(tmp_path: Path) -> None:
    """As this launch would divide it: refused in the student's run, and no folder is left for the teacher."""
    recipe = taught(tmp_path, dict(trainer__global_batch=9))
    with pytest.raises(UserError, match="global_batch is 9, which 1 process of 4 items at a time cannot"):
        run(recipe, quiet=True)
    assert not (tmp_path / "teacher_run").exists()
