"""The test of the design: two modalities plug in, and not a line of the core knows them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
import toys
from torch import Tensor

from transmamba.config import load as configs
from transmamba.core.batch import Batch
from transmamba.core.card import Card
from transmamba.core.task import Pass, Task
from transmamba.core.tower import Student, Tower
from transmamba.distillation.distiller import Distiller
from transmamba.evaluation.language import LanguageEvaluator
from transmamba.reporting.report import write_report
from transmamba.runs.recipe import Recipe
from transmamba.runs.run import run
from transmamba.training.step import Stepper
from transmamba.training.strategies import Plain
from transmamba.views.heads import Embedder

RECIPES: dict[str, dict[str, Any]] = {
    "pairs": dict(
        task=dict(name="toy_pairs"),
        teacher=dict(name="toy_clip"),
        student=dict(name="toy_dual"),
        losses=["toy_contrastive", "feature"],
    ),
    "text": dict(
        task=dict(name="toy_text"),
        teacher=dict(name="toy_lm"),
        student=dict(name="toy_causal"),
        losses=[dict(name="cross_entropy", chunk=5), dict(name="kl", chunk=7), "feature"],
    ),
}


def recipe_of(kind: str, folder: Path, **trainer: Any) -> Recipe:
    parts = dict(RECIPES[kind])
    losses = parts.pop("losses")
    values = dict(
        parts,
        output_dir=str(folder),
        init=dict(calibration_images=8),
        stages=[
            dict(name="align", losses=["mixer"], steps=3, lr=3e-3),
            dict(name="distill", losses=losses, steps=5, lr=3e-3),
        ],
        trainer=dict(dict(global_batch=8, log_every=1, save_every=2, eval_every=2), **trainer),
        seed=5,
    )
    return configs.parse(Recipe, values, kind)


@pytest.fixture(autouse=True)
def parts() -> Iterator[None]:
    with toys.registered():
        yield


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toys belong to no library, so a student folder has no format of its own."""
    monkeypatch.setattr("transmamba.runs.pipeline.save_model", _save)
    card = Card(library="toys", pipeline_tag="toy", snippet="")
    monkeypatch.setattr("transmamba.runs.leave.card_of", lambda student: card)


def _save(student: Any, folder: Path, preprocessing: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(student.state_dict(), folder / "student.pt")


@pytest.mark.parametrize("kind", RECIPES)
def test_a_whole_run(kind: str, tmp_path: Path, stock: None) -> None:
    results = run(recipe_of(kind, tmp_path / "run", micro_batch=4), quiet=True)
    rows = harness.metrics_rows(tmp_path / "run")
    last = [row for row in rows if "loss" in row][-1]
    headline = {"pairs": "recall", "text": "nats"}[kind]
    assert headline in results["student"] and any(f"eval/{headline}" in row for row in rows)
    assert last["samples"] == 8 * 8 and last["tokens"] > last["samples"]
    expected = {
        "pairs": {"loss/toy_contrastive", "loss/feature/image", "loss/feature/text"},
        "text": {"loss/cross_entropy", "loss/kl", "loss/feature"},
    }[kind]
    assert expected <= last.keys()
    page = write_report(tmp_path / "run").read_text()
    label = {"pairs": "recall@1", "text": "nats a token"}[kind]
    assert label in page
    subcloned = json.loads((tmp_path / "run" / "subclone.json").read_text())
    assert subcloned["counts"]["sliced"] == 1, "the table of tokens, narrower"


def test_what_compares_models_sees_both_in_one_pass(
    tmp_path: Path, stock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the student is trained too, and once at the end: what was measured is not measured again."""
    passes = []

    def evaluators(data: toys.PackedText, split: str) -> tuple[LanguageEvaluator, ...]:
        def read(passing: Pass) -> Iterator[Batch]:
            passes.append(split)
            yield from toys.Perplexity(data, split).batches(passing)

        return (LanguageEvaluator(split, read),)

    monkeypatch.setattr(toys.PackedText, "evaluators", evaluators)
    monkeypatch.setattr(toys.PackedText, "metrics", LanguageEvaluator.METRICS)
    results = run(recipe_of("text", tmp_path / "run"), quiet=True)
    rows = [row for row in harness.metrics_rows(tmp_path / "run") if "eval/kl" in row]
    assert len(rows) == len(passes) > 2
    student, teacher = results["student"], results["teacher"]
    assert rows[-1]["eval/kl"] == student["kl"] > 0 and rows[-1]["eval/perplexity"] == student["perplexity"]
    assert teacher["kl"] == 0 and teacher["top1_agreement"] == 100
    assert results["difference"]["kl"]["mean"] == pytest.approx(student["kl"])
    assert (
        "By the token" in write_report(tmp_path / "run").read_text()
    )  # run itself may have been made not to


@pytest.mark.parametrize("kind", RECIPES)
def test_a_resumed_run_is_the_uninterrupted_one(
    kind: str, tmp_path: Path, stock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    whole = run(recipe_of(kind, tmp_path / "whole"), quiet=True)
    asked = threading.Event()
    real = Stepper.step

    def step(self: Stepper, micro: Any, number: int, *_: Any) -> Any:
        if number == 4:
            asked.set()
        return real(self, micro, number, asked.is_set)

    from transmamba.training.interrupted import Interrupted

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(Interrupted):
        run(recipe_of(kind, tmp_path / "cut"), quiet=True)
    monkeypatch.setattr(Stepper, "step", real)
    cut = run(recipe_of(kind, tmp_path / "cut"), quiet=True)
    assert harness.without_timing(whole) == harness.without_timing(cut)
    one, other = (harness.metrics_rows(tmp_path / name) for name in ("whole", "cut"))
    assert harness.without_timing(one) == harness.without_timing(other)


@pytest.mark.parametrize("kind", RECIPES)
def test_the_parts_keep_their_contracts(kind: str, tmp_path: Path) -> None:
    recipe = recipe_of(kind, tmp_path)
    teacher = recipe.teacher.build()
    task = recipe.task.build(teacher.preprocessing)
    student = recipe.student.build(None)
    assert isinstance(task, Task) and isinstance(student, Student)
    assert all(isinstance(tower, Tower) for tower in student.towers.values())


def test_the_core_names_no_toy() -> None:
    """Nor retrieval, nor language: what is charted and tabled comes from metrics and samples."""
    root = Path(toys.__file__).parents[2] / "transmamba"
    core = [
        *(root / "training").glob("*.py"),
        root / "distillation" / "distiller.py",
        root / "runs" / "run.py",
        root / "runs" / "pipeline.py",
        *(root / "reporting").glob("*.py"),
    ]
    for path in core:
        found = [word for word in words_of(path) if re.search(r"toy|recall|perplexity|top1", word)]
        assert not found or path.name == "earlier.py", f"{path.name}: {found}"  # reads runs of before


def words_of(path: Path) -> list[str]:
    """Names and texts of a file, without its docstrings."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docs]
    return [*names, *(text for text in texts if isinstance(text, str))]


# --- coupled losses, however a step is divided ---


OURS = ("contrastive", "sigmoid", "affinity", "embedding_cosine", "feature")


def dual_teacher() -> Any:
    """Both towers embed, and it has a scale of its own."""
    teacher, draw = toys.ToyClip().build().to("cpu"), toys.Numbers(2)
    read = Embedder("first", draw.affine(toys.EMBEDDED, toys.WIDTH))
    teacher.view = replace(
        teacher.view, heads={**teacher.view.heads, "text": read}, scalars={"scale": torch.tensor(20.0)}
    )
    return teacher


def gradients(world: int, accumulation: int, path: Path, ours: bool) -> None:
    """One step of eight pairs in float64, divided so; rank 0 saves losses and gradients.

    ours: of the registered losses over pairs, with captions of one image in different micro-batches
    """
    import os

    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    student = toys.ToyDual().build(None)  # type: ignore[arg-type]
    teacher = dual_teacher()
    teacher.view = toys_double(teacher.view)
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    distiller = Distiller(student, teacher, OURS if ours else [toys.Contrastive(), "feature"])
    strategy = Plain(accelerator)
    strategy.prepare(distiller, lambda given: torch.optim.SGD(given.parameters(), lr=0.0))
    kept: dict[str, Tensor] = {}
    strategy.optimizer.step = lambda: kept.update(  # type: ignore[method-assign]
        {name: p.grad.clone() for name, p in distiller.named_parameters() if p.grad is not None}
    )
    stepper = Stepper(strategy, seed=1, change=lambda batch, seed: batch)
    size, rank = 8 // (world * accumulation), accelerator.process_index
    batches = []
    for m in range(accumulation):
        start = (m * world + rank) * size
        batch = toys.Pairs().make(toys.np.arange(start, start + size))
        batch = replace(batch, targets={"group": batch.index % 3} if ours else {})
        batches.append(batch.map(lambda x: x.double() if x.is_floating_point() else x))
    done = stepper.step(batches, 0)
    if os.environ.get("RANK", "0") == "0":
        torch.save({"means": done.means, "gradients": kept}, path)


def toys_double(view: Any) -> Any:
    from transmamba.views.sublayers import map_tensors

    return map_tensors(view, lambda x: x.double() if x.is_floating_point() else x)


@pytest.fixture(scope="module", params=[False, True], ids=["toy", "ours"])
def whole_step(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bool, dict[str, Any]]:
    """Whether it is of our losses, and the step undivided."""
    path = tmp_path_factory.mktemp("coupled") / "whole.pt"
    harness.in_ranks(1, gradients, 1, 1, path, request.param)
    return request.param, torch.load(path)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 4), (1, 8), (2, 1), (2, 2)])
def test_a_coupled_loss_is_that_of_the_whole_step(
    world: int, accumulation: int, whole_step: tuple[bool, dict[str, Any]], tmp_path: Path
) -> None:
    ours, whole = whole_step
    harness.in_ranks(world, gradients, world, accumulation, tmp_path / "divided.pt", ours)
    divided = torch.load(tmp_path / "divided.pt")
    assert whole["means"].keys() == divided["means"].keys()
    for name, value in whole["means"].items():
        assert divided["means"][name] == pytest.approx(value, rel=1e-6), "the log is in float32"
    assert whole["gradients"]["student.scale"].abs() > 1e-3
    # in one batch, a number that the loss does not read has no gradient at all
    assert (whole["gradients"].get("student.bias", torch.zeros(())).abs() > 1e-3) == ours
    for name, gradient in whole["gradients"].items():
        torch.testing.assert_close(divided["gradients"][name], gradient, rtol=1e-10, atol=1e-12)


# --- sharded ---

SHARDED: dict[str, tuple[int, dict[str, str]]] = {
    "ddp": (2, {}),
    "fsdp2": (2, harness.FSDP2),
    "zero2": (1, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
    "zero3": (1, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}),
}


def launched(environment: dict[str, str], kind: str, folder: Path, micro: int) -> None:
    """A whole run as the launcher that set this environment starts it."""
    import os

    import transmamba.runs.leave
    import transmamba.runs.pipeline

    os.environ.update(environment, DS_ACCELERATOR="cpu")
    transmamba.runs.pipeline.save_model = _save
    transmamba.runs.leave.card_of = lambda student: Card(library="toys", pipeline_tag="toy", snippet="")
    with toys.registered():
        harness.run_quietly(recipe_of(kind, folder, micro_batch=micro))


@pytest.fixture(scope="module")
def plain() -> dict[str, Path]:
    """The plain runs that were made so far, by kind."""
    return {}


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("pairs", "fsdp2"),
        ("text", "zero3"),
        ("text", "ddp"),
        *[
            pytest.param(*both, marks=pytest.mark.slow)
            for both in (("text", "fsdp2"), ("pairs", "zero3"), ("text", "zero2"), ("pairs", "zero2"))
        ],
    ],
)
def test_sharded_is_plain(
    kind: str, strategy: str, tmp_path_factory: pytest.TempPathFactory, plain: dict[str, Path]
) -> None:
    """A coupled loss, a learnt number and rows of text too."""
    world, environment = SHARDED[strategy]
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO needs pip install 'transmamba[deepspeed]'")
    if kind not in plain:
        plain[kind] = tmp_path_factory.mktemp("plain")
        harness.in_ranks(1, launched, {}, kind, plain[kind], 4)
    sharded = tmp_path_factory.mktemp(strategy)
    harness.in_ranks(world, launched, environment, kind, sharded, 4 // world)
    ours, theirs = (harness.metrics_rows(folder) for folder in (sharded, plain[kind]))
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.pop("stage_name", "") == other.pop("stage_name", "")
        assert mine == pytest.approx(other, rel=2e-5, abs=1e-6)
    one, two = (torch.load(folder / "student/student.pt") for folder in (sharded, plain[kind]))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
