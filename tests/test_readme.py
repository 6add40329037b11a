"""README and docs: what they name exists, and their code runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fresh_process
import numpy as np
import pytest
import timm
import torch
from harness import TEACHER, metrics_rows, run_quietly, tiny_batch, tiny_recipe, tiny_vit
from safetensors.torch import save_file

import transmamba
from transmamba.cli import main as cli
from transmamba.config import load as configs
from transmamba.config.registry import LOSSES, READERS, STUDENTS, TASKS, TEACHERS
from transmamba.core.task import Evaluator, Task
from transmamba.core.tower import Student, StudentSpec, Tower
from transmamba.ecosystems import find
from transmamba.runs.recipe import Recipe, Stage, TrainerConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
STEPS = (ROOT / "docs" / "your_own_vit.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [body for name, body in found if name == language]


def commands(page: str = README) -> list[list[str]]:
    """Every command in a page's bash blocks, continued lines joined."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("words", [*commands(), *commands(STEPS)], ids=" ".join)
def test_commands_exist(words: list[str]) -> None:
    if words[0] == "make":
        assert set(words[1:]) <= targets()
        return
    for word in words:
        if word.startswith(("recipes/", "scripts/")):
            assert (ROOT / word).is_file(), word
    if words[0] == "transmamba":
        verb, rest = cli.VERBS[words[1]], words[2:]
        if isinstance(verb, cli.Verbs):
            verb, rest = verb.verbs[rest[0]], rest[1:]
        parser = argparse.ArgumentParser()
        verb.add(parser)
        parser.parse_intermixed_args(rest)
    if "--config" in words and "my_recipe.yaml" not in words:
        overrides = [word for word in words if re.match(r"[a-z_.0-9]+=", word)]
        configs.load(Recipe, ROOT / words[words.index("--config") + 1], overrides)


def test_the_two_commands_exist() -> None:
    assert commands()[:2] == [["make", "demo"], ["make", "test"]]


def test_installing_stands_before_the_commands_with_the_extras() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name for name in project["optional-dependencies"] if name not in ("dev", "boosted")}
    before = README[: README.index("\ntransmamba inspect")]
    assert "pip install -e" in before
    assert extras == set(re.findall(r"^- `(\w+)`: ", before, re.MULTILINE))


def test_make_targets_that_pages_name_exist() -> None:
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)", page.read_text()))
        assert named <= targets(), page.name


def tree() -> list[tuple[str, str]]:
    """(path, what it is) of every line of README's tree."""
    (block,) = [block for block in blocks(README, "") if block.startswith("Makefile")]
    lines, folders = [], [""]
    for line in block.splitlines():
        match = re.match(r"( *)(.+?)(?:  +(.+))?$", line)
        assert match, line
        depth, names, text = len(match[1]) // 2, match[2], match[3] or ""
        del folders[depth + 1 :]
        for name in names.split(", "):
            lines.append((folders[depth] + name, text))
        if names.endswith("/") and not text:
            folders.append(folders[depth] + names)
    return lines


def test_the_tree_names_what_exists() -> None:
    for path, _ in tree():
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("folder", ["transmamba", "scripts", "docs", "recipes"])
def test_what_exists_is_in_the_tree(folder: str) -> None:
    named = {path.rstrip("/") for path, _ in tree()}
    for path in (ROOT / folder).iterdir():
        hidden = path.name.startswith(("_", ".")) or path.suffix in (".jinja", ".typed")
        if not hidden and not path.name.endswith(".egg-info"):
            assert f"{folder}/{path.name}" in named, f"{path.name} is not in README's tree"


def test_links_lead_to_what_exists() -> None:
    for page in PAGES:
        text = re.sub(r"`[^`]*`", "", page.read_text())
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_files_that_pages_name_exist() -> None:
    pattern = r"`((?:transmamba|recipes|scripts|tests|docs|kernels)/[\w./-]+\.\w+)`"
    for page in PAGES:
        if page.name == "LOG.md":  # a lab book may name what is gone
            continue
        for name in re.findall(pattern, page.read_text()):
            assert (ROOT / name).exists() or name == "transmamba/convert.py", f"{page.name}: {name}"


# --- code ---


def run_blocks(text: str, **names: Any) -> dict[str, Any]:
    """Run the page's Python blocks, with `names` defined; what is defined afterwards."""
    module = ModuleType("documentation")
    vars(module).update(names)
    sys.modules["documentation"] = module  # where dataclasses look their annotations up
    try:
        for block in blocks(text, "python"):
            exec(compile(block, "documentation", "exec", dont_inherit=True), vars(module))
    finally:
        del sys.modules["documentation"]
    return vars(module)


def test_the_readme_s_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two of its teacher's twelve blocks."""
    monkeypatch.chdir(tmp_path)
    made = timm.create_model

    def smaller(name: str, **kwargs: Any) -> Any:
        return made(name, **kwargs, **({"depth": 2} if name == "vit_tiny_patch16_224" else {}))

    monkeypatch.setattr(timm, "create_model", smaller)
    names = run_blocks(README)
    assert len(names["teacher"].blocks) == 2
    assert names["report"].covered > 0.1
    assert (tmp_path / "my_student" / "model.safetensors").is_file()


def test_the_steps_of_your_own_vit_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's code and its recipe, on noise and a ViT of two small blocks."""
    monkeypatch.chdir(tmp_path)
    shape = dict(TEACHER, num_classes=3)
    torch.save(timm.create_model("vit_small_patch16_224", **shape).state_dict(), "mine.pt")
    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: made(name, **{**kwargs, **shape}))
    first, last = blocks(STEPS, "python")
    first = first.replace("model_args={}", f"model_args={dict(TEACHER)}")
    exec(first, {"timm": timm, "torch": torch})
    monkeypatch.setattr(timm, "create_model", made)
    (recipe,) = blocks(STEPS, "yaml")
    Path("my_recipe.yaml").write_text(recipe)
    data = dict(name="synthetic", num_train=30, num_test=8, num_classes=3, size=8)
    few = dict(global_batch=4, micro_batch="null", precision="no", workers=0, eval_batch_size=8)
    overrides = [f"task.data={data}", "task.validation=0.1", "stages.1.epochs=0.5"]
    overrides += [f"trainer.{key}={value}" for key, value in few.items()]
    results = run_quietly(configs.load(Recipe, Path("my_recipe.yaml"), overrides))
    names: dict[str, Any] = {}
    exec(last, names)
    assert names["student"].num_classes == 3 and names["student"].width == TEACHER["embed_dim"]
    assert names["transform"] is not None and results["student"]["params"] > 0


def test_the_keys_of_a_recipe_are_a_fresh_render() -> None:
    made = fresh_process.run_script(ROOT / "scripts/recipe_keys.py")
    page = (ROOT / "docs" / "recipe_keys.md").read_text()
    assert made.stdout == page, "python scripts/recipe_keys.py > docs/recipe_keys.md"
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) > 90 and not [name for name, _, meaning in rows if not meaning]
    for key in ("stream", "standardize", "final_split", "cuda_graphs"):
        assert any(name == key and len(meaning) > 20 for name, _, meaning in rows), key
    for settings in (Recipe, Stage, TrainerConfig):
        for field in dataclasses.fields(settings):
            assert any(name == field.name and meaning for name, _, meaning in rows), field.name


def test_the_loop_of_your_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten lines, in which the loss goes down."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "your_own_loop.md").read_text()
    lines = [line for line in blocks(text, "python")[0].splitlines() if line and "import" not in line]
    assert len(lines) <= 10
    torch.manual_seed(0)
    teacher = timm.create_model("vit_tiny_patch16_224", num_classes=3, in_chans=1, **TEACHER).eval()
    batch = tiny_batch(4)
    loader = [(batch.inputs["image"][:, :1], batch.targets["classes"])] * 4
    seen: list[float] = []
    plain = transmamba.Distiller.loss

    def watched(self: Any, *arguments: Any) -> Any:
        total, parts = plain(self, *arguments)
        seen.append(float(total.detach()))
        return total, parts

    monkeypatch.setattr(transmamba.Distiller, "loss", watched)
    run_blocks(text, teacher=teacher, loader=loader)
    assert len(seen) == 4 and seen[-1] < seen[0]
    assert (tmp_path / "my_student" / "config.json").is_file()


PART = (ROOT / "docs" / "adding_a_part.md").read_text()


@pytest.fixture
def parts() -> Iterator[dict[str, Any]]:
    """What the page about parts defines, registered while tests of it run."""
    registries = [TEACHERS, STUDENTS, LOSSES, TASKS, READERS]
    before = [{name: registry[name] for name in registry} for registry in registries]
    libraries = list(find.ECOSYSTEMS)
    try:
        yield run_blocks(PART)
    finally:
        for registry, there in zip(registries, before, strict=True):
            registry._parts = there
        find.ECOSYSTEMS[:] = libraries


def write_pairs(folder: Path) -> None:
    """The files that the page's recipe names: 24 pictures with captions and a tower's weights."""
    draw = np.random.default_rng(0)
    words = draw.integers(1, 13, (24, 5)) * (np.arange(5) < draw.integers(2, 6, (24, 1)))
    np.savez(folder / "pairs.npz", images=draw.random((24, 1, 4, 4), np.float32), captions=words)
    shapes = {"patch": (8, 1, 2, 2), "up": (16, 8), "down": (8, 16), "projection": (6, 8)}
    shapes |= dict.fromkeys("qkvo", (8, 8)) | dict.fromkeys(("norm1", "norm2", "norm"), (8,))
    torch.manual_seed(0)
    state = {"cls": torch.randn(1, 8), "position": torch.randn(5, 8)}
    for name, shape in shapes.items():
        state |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}
    save_file(state, folder / "tower.safetensors")


@pytest.mark.usefixtures("parts")
def test_one_part_of_each_kind_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's recipe: every loss, the evaluator's metric, a student that its library loads."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path)
    (recipe,) = blocks(PART, "yaml")
    Path("recipe.yaml").write_text(recipe)
    results = run_quietly(configs.load(Recipe, "recipe.yaml"))
    assert 0 <= results["student"]["recall"] <= 100
    assert "teacher" not in results, "it knows nothing of captions"
    rows = [row for row in metrics_rows(Path("runs/pairs")) if "loss" in row]
    assert len(rows) == 12 and {"loss/squared", "loss/matching"} <= rows[-1].keys()
    assert rows[-1]["loss/matching"] < rows[4]["loss/matching"]
    made = json.loads(Path("runs/pairs/subclone.json").read_text())
    assert made["counts"]["sliced"] == 1 and "image.cls" in json.dumps(made)
    student = find.load_model("runs/pairs")
    images = {"image": torch.randn(2, 1, 4, 4), "text": torch.ones(2, 3, dtype=torch.int64)}
    assert student.run(images, {}).embeddings.keys() == {"image", "text"}
    assert "pair_library" in Path("runs/pairs/student/README.md").read_text()


def test_the_parts_of_the_page_keep_their_contracts(parts: dict[str, Any], tmp_path: Path) -> None:
    write_pairs(tmp_path)
    task = parts["MyPairsTask"](file=str(tmp_path / "pairs.npz")).build(None)
    student = parts["MyPairs"]().build(StudentSpec())
    assert isinstance(task, Task) and isinstance(student, Student)
    assert all(isinstance(tower, Tower) for tower in student.towers.values())
    assert all(isinstance(each, Evaluator) for each in task.evaluators("test"))


@pytest.mark.usefixtures("parts")
def test_a_reader_and_a_loss_of_the_page_train_any_other_student(tmp_path: Path) -> None:
    losses = [{"name": "squared", "weight": 0.1}, "kl"]
    recipe = tiny_recipe(
        tmp_path,
        task=dict(name="image_classification", data=dict(name="stripes")),
        teacher=dict(name="timm_vit", model=str(saved_vit(tmp_path / "stripes_teacher", num_classes=2))),
        stages=[{"name": "distill", "losses": losses, "steps": 2}],
    )
    assert run_quietly(recipe)["student"]["nll"] > 0


def saved_vit(folder: Path, num_classes: int) -> Path:
    find.save_model(tiny_vit(num_classes), folder)
    return folder


def test_every_loss_is_in_the_method_page() -> None:
    text = (ROOT / "docs" / "method.md").read_text()
    for name in LOSSES:
        assert f"`{name}`" in text or name == "bidirectional", name
