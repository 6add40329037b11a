"""What a recipe may not say: refused when it is read, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import harness
import pytest

from transmamba.config import load as configs
from transmamba.errors import ConfigError, UserError
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


def test_a_teacher_s_recipe_is_divided_before_it_is_trained(tmp_path: Path) -> None:
    """As this launch would divide it: refused in the student's run, and no folder is left for the teacher."""
    teaching = harness.tiny_recipe(
        tmp_path,
        output_dir=str(tmp_path / "teacher_run"),
        teacher=None,
        init=None,
        stages=[PART | dict(steps=2)],
        trainer__global_batch=9,
    )
    configs.save_yaml(teaching, tmp_path / "teaching.yaml")
    recipe = harness.tiny_recipe(
        tmp_path,
        teacher__model=str(tmp_path / "teacher_run"),
        teacher_recipe=str(tmp_path / "teaching.yaml"),
    )
    with pytest.raises(UserError, match="global_batch is 9, which 1 process of 4 items at a time cannot"):
        run(recipe, quiet=True)
    assert not (tmp_path / "teacher_run").exists()
