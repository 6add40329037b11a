"""Every study in recipes/studies: all its cells and what they need are recipes that load."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from transmamba.config import load as configs
from transmamba.runs.recipe import Recipe, stage_steps

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import study as studies  # noqa: E402

STUDIES = sorted((ROOT / "recipes" / "studies").glob("*.yaml"))


def recipes_of(path: Path) -> dict[str, Recipe]:
    """Every run of a study by its name."""
    study = studies.Study(yaml.safe_load(path.read_text()))
    overrides: dict[str, tuple[str, ...]] = {}
    for cell in study.cells:
        for run in (*study.needs(cell), study.run_of(cell)):
            assert overrides.setdefault(run.name, run.overrides) == run.overrides, "one name, one recipe"
    recipes = {}
    for name, items in overrides.items():
        (config,) = [item.removeprefix("config=") for item in items if item.startswith("config=")]
        rest = [item for item in items if not item.startswith("config=")]
        recipes[name] = configs.load(Recipe, ROOT / config, rest)
    return recipes


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_cell_loads(path: Path) -> None:
    assert recipes_of(path)
    assert f"python scripts/study.py recipes/studies/{path.name}" in path.read_text()


def test_every_arm_takes_the_same_steps() -> None:
    """Of data_efficiency.yaml, but for those whose name says otherwise."""
    lengths = {"half": 400, "long": 1600, "longest": 3200}
    cells = {name: recipe for name, recipe in recipes_of(STUDIES[0]).items() if name.count(".") == 4}
    assert len(cells) > 100
    for name, recipe in cells.items():
        expected = lengths.get(name.split(".")[2].split("_")[-1], 800)
        assert sum(stage_steps(recipe.stages, recipe.trainer.batch_size, 256)) == expected, name
        assert recipe.trainer.batch_size * recipe.trainer.accumulation == 256
        assert recipe.task.validation and recipe.task.final_split == "test"
