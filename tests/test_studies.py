"""Every study in recipes/studies: its cells and what they wait for are recipes that load; the frozen page."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from transmamba.config import load as configs
from transmamba.core.tower import StudentSpec
from transmamba.ecosystems.find import save_model
from transmamba.runs.recipe import Recipe
from transmamba.tasks.in_context import InContext
from transmamba.teachers.load import load_teacher
from transmamba.training.stage import Items, stage_steps

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import study as studies  # noqa: E402

STUDIES = sorted((ROOT / "recipes" / "studies").glob("*.yaml"))
ICL = ROOT / "recipes" / "studies" / "icl.yaml"
FUSION = ROOT / "recipes" / "studies" / "questions_fusion.yaml"
VQA = ROOT / "recipes" / "studies" / "vqa_scenes.yaml"
DATA_EFFICIENCY = ROOT / "recipes" / "studies" / "data_efficiency.yaml"


@functools.cache
def study_of(path: Path) -> studies.Study:
    return studies.Study(yaml.safe_load(path.read_text()))


def some_of(study: studies.Study) -> list[dict[str, str]]:
    """All cells; of a study of thousands, in which a label is chosen, so many that every label stands in one,
    and every row."""
    if study.choose is None:
        return study.cells
    seen: set[Any] = set()
    kept = []
    for cell in study.cells:
        parts = {*cell.items(), tuple(cell[axis] for axis in study.report["rows"])}
        if not parts <= seen:
            seen |= parts
            kept.append(cell)
    return kept


@functools.cache
def recipes_of(path: Path) -> dict[str, Recipe]:
    """Every run of a study by its name."""
    study = study_of(path)
    overrides: dict[str, tuple[str, ...]] = {}
    for cell in some_of(study):
        for run in study.chain(cell):
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


TAUGHT = [("mqar", 21), ("tree", 15), ("parity", 9)]


@pytest.mark.parametrize(("function", "runs"), TAUGHT)
def test_students_in_context_differ_by_their_teacher_alone(function: str, runs: int, tmp_path: Path) -> None:
    """Of icl.yaml, those of a teacher and their counterparts without: the same layers, as many steps, the
    last stage's pace."""
    recipes = recipes_of(ICL)
    first = recipes[f"teacher.{function}"]
    save_model(
        first.student.build(StudentSpec(points=InContext(first.task, None).points)), tmp_path / "student"
    )
    taught = [name for name in recipes if name.startswith(f"{function}_taught.")]
    assert len(taught) == runs
    for name in taught:
        one, other = recipes[name], recipes[name.replace("_taught", "_untaught")]
        points = InContext(one.task, None).points
        spec = StudentSpec(view=load_teacher(tmp_path).view, preprocessing=points, points=points)
        assert (one.task, one.trainer, one.seed) == (other.task, other.trainer, other.seed)
        assert str(one.teacher.model).endswith(f"/teacher.{function}") and other.teacher is None
        (stage,), last = other.stages, one.stages[-1]
        assert stage.steps == sum(each.steps or 0 for each in one.stages)
        alike = dict(losses=last.losses, name=last.name, steps=last.steps)
        assert dataclasses.replace(stage, **alike) == last
        assert {loss.name for loss in stage.losses} == {"prediction"}
        shapes = [
            {key: x.shape for key, x in recipe.student.build(each).state_dict().items()}
            for recipe, each in ((one, spec), (other, StudentSpec(points=points)))
        ]
        assert shapes[0] == shapes[1]


def test_who_is_said_to_fail_in_context_had_three_rates() -> None:
    """Of icl.yaml, each with three seeds."""
    cells = study_of(ICL).cells
    for task in ("mqar", "tree", "mqar_untaught", "tree_untaught", "parity"):
        for architecture in ("mamba", "mambaformer"):
            rates = {
                (each["rate"], each["seed"])
                for each in cells
                if (each["task"], each["architecture"]) == (task, architecture)
                and each["state"] in ("auto", "16")
            }
            assert len(rates) == 9, (task, architecture)


def test_every_arm_takes_the_same_steps() -> None:
    """Of data_efficiency.yaml, but for those whose name says otherwise."""
    lengths = {"half": 400, "long": 1600, "longest": 3200}
    cells = {name: recipe for name, recipe in recipes_of(DATA_EFFICIENCY).items() if name.count(".") == 4}
    assert len(cells) > 100
    for name, recipe in cells.items():
        expected = lengths.get(name.split(".")[2].split("_")[-1], 800)
        items = [Items(45_000)] * len(recipe.stages)
        assert sum(stage_steps(recipe.stages, items, recipe.trainer.global_batch)) == expected, name
        assert recipe.trainer.global_batch == 256
        assert recipe.task.validation and recipe.task.final_split == "test"


def test_what_first_runs_and_cells_share_and_do_not() -> None:
    """Of data_efficiency.yaml, as it ran at aa63b8b, when `common` was of cells alone."""
    recipes = recipes_of(DATA_EFFICIENCY)
    teacher, head = recipes["teacher.strong"], recipes["head.strong.25%.s1"]
    cell, scratch = (
        recipes["transfer_strong.vim.full.25%.s1"],
        recipes["transfer.vim.scratch_move_long.50%.s0"],
    )
    named = (teacher, head, cell, scratch)
    sizes = [(*each.trainer.division(processes=1), each.trainer.workers) for each in named]
    assert sizes == [(512, 1, 0), (256, 1, 0), (256, 1, 0), (256, 1, 0)]
    assert [each.trainer.eval_every for each in named] == [2000, 0, 200, 200]
    assert [each.trainer.save_every for each in named] == [200, 200, 0, 0]
    assert [each.task.final_split for each in named] == [None, None, "test", "test"]
    assert [(each.task.mixup, each.task.cutmix) for each in named] == [(0.8, 1.0), (0, 0), (0.4, 1.0), (0, 0)]
    assert all(each.task.validation == 0.05 and each.wandb is None for each in named)
    assert teacher.student.kwargs["depth"] == 6 and teacher.student.kwargs["drop_path_rate"] == 0.2
    assert head.student.kwargs == {"drop_path_rate": 0.0} and head.student.fresh_head
    assert cell.student.model == "vim_mini_patch4_32" and cell.init is not None and cell.init.average
    assert scratch.init is None and [stage.steps for stage in scratch.stages] == [1600]


def test_what_a_part_of_the_start_leaves_out() -> None:
    cells = recipes_of(DATA_EFFICIENCY)
    for arm, parts in {
        "mimic": (True, False, False),
        "plain": (True, True, False),
        "soft": (True,) * 3,
    }.items():
        init = cells[f"transfer.vim.{arm}.10%.s0"].init
        assert init is not None and (init.mimic, init.fold, init.average) == parts, arm
    mnist = recipes_of(ROOT / "recipes" / "studies" / "parts_mnist.yaml")
    init = mnist["32.soft.1%.s2"].init
    assert init is not None and init.average
    assert not getattr(mnist["32.mimic.1%.s2"].init, "average", True)


def test_a_cell_waits_for_the_teacher_of_its_setting_alone() -> None:
    study = study_of(DATA_EFFICIENCY)
    for cell in study.cells:
        *first, own = [run.name for run in study.chain(cell)]
        head = f"{cell['fraction']}.{cell['seed']}"
        assert (
            first
            == {
                "transfer": ["teacher.half", f"head.{head}"],
                "transfer_strong": ["teacher.strong", f"head.strong.{head}"],
                "compression": ["teacher.whole"],
                "compression_strong": ["teacher.whole_strong"],
            }[cell["setting"]]
        ), own


def test_the_frozen_page_and_its_folder_go_together() -> None:
    page = (ROOT / "docs" / "study_data_efficiency.md").read_text()
    assert "Frozen at aa63b8b" in page and "<!--" not in page
    for path in (ROOT / "docs" / "study").iterdir():
        assert f"study/{path.name}" in page, path.name


def test_questions_fusion_asks_what_its_labels_say() -> None:
    """Twelve runs an arm from the same teacher, equal but for what reads the question, tokens and seed."""
    cells = {name: recipe for name, recipe in recipes_of(FUSION).items() if name.count(".") == 2}
    found: list[Any] = []
    assert len(cells) == 7 * 4 * 3
    for name, recipe in cells.items():
        arm, tokens, seed = name.split(".")
        assert recipe.teacher.image_tokens == int(tokens) and recipe.seed == int(seed[1:])
        cross = recipe.student.cross
        asked = "none" if cross is None else "shuffled" if cross.prompt == "shuffled" else cross.mode
        assert asked == arm and (arm != "shuffled" or cross.mode == "state")
        alike = dataclasses.replace(
            recipe,
            output_dir="",
            seed=0,
            teacher=dataclasses.replace(recipe.teacher, image_tokens=None),
            student=dataclasses.replace(recipe.student, cross=None),
        )
        found.append(configs.dump(alike))
    assert all(each == found[0] for each in found)
    data = alike.task.data
    assert (data.side, data.fewest, data.most) == (112, 8, 10)
    assert recipes_of(FUSION)["teacher"].task.data == data
    assert recipes_of(FUSION)["tower"].task.data.side == 112


def test_vqa_scenes_takes_equal_steps_and_its_shares_differ() -> None:
    """Each arm as many steps; even the whole of the questions is seen more than twice, for a half that is not
    seen through is as good as the whole; and averages are asked of Vims, which alone begin so."""
    for name, recipe in recipes_of(VQA).items():
        arm, share, _ = name.split(".")
        steps = sum(stage.steps or 0 for stage in recipe.stages)
        assert steps == 800 and recipe.task.fraction == int(share) / 100
        assert steps * recipe.trainer.global_batch > 2 * recipe.task.data.count_train
        student = recipe.student
        assert (arm == "decoder") == (student.image.kind == "kept")
        assert (arm == "tower") == (student.decoder.kind == "kept")
        assert (recipe.init is None) == (arm == "scratch")
        if recipe.init is not None:
            assert recipe.init.average == (student.image.kind == "vim")
