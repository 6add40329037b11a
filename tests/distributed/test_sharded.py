"""FSDP2 on two processes and ZeRO on one are one plain process: every loss, evaluation, saving, resuming."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from safetensors.torch import load_file

from transmamba.config.registry import LOSSES
from transmamba.runs.recipe import Recipe

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}


def recipe_of(folder: Path, name: str, student: str, ranks: int = 1, **changes: Any) -> Recipe:
    """Mixers alone, then every registered loss at once, its features standardised and its tokens drawn; no
    stochastic depth, whose draws belong to a micro-batch. Two micro-batches a step and process."""
    kwargs = dict(harness.VIM) if student == "vim" else dict(harness.TEACHER)
    model = dict(name="vim", model="vim_micro_patch2_8", kwargs=kwargs)
    if student == "ssd_vit":
        model = dict(name="ssd_vit")
    every: list[Any] = [
        dict(name=loss, standardize=True) if loss == "bidirectional" else loss for loss in sorted(LOSSES)
    ]
    values: dict[str, Any] = dict(
        student=model,
        stages=[
            dict(name="align", losses=["mixer"], steps=3, lr=3e-3),
            dict(name="distill", losses=every, steps=4, lr=3e-3, token_fraction=0.6, clip=1.0),
        ],
        trainer=dict(
            global_batch=8,
            micro_batch=4 // ranks,
            save_every=2,
            log_every=1,
            eval_every=2,
            eval_batch_size=4,
        ),
    )
    return harness.tiny_recipe(folder, output_dir=str(folder / name), **(values | changes))


def launched(environment: dict[str, str], recipe: Recipe) -> None:
    """As `accelerate launch` does it."""
    os.environ.update(environment)
    harness.run_quietly(recipe)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module", params=["vim", "ssd_vit"])
def plain(request: pytest.FixtureRequest, folder: Path) -> Path:
    """The run of one plain process."""
    name = f"plain-{request.param}"
    harness.finish(harness.start(harness.run_quietly, recipe_of(folder, name, request.param)))
    return folder / name


def assert_near(run: Path, wanted: Path) -> None:
    """Every number logged and every weight, but for rounding."""
    ours, theirs = harness.metrics_rows(run), harness.metrics_rows(wanted)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys() and mine.pop("stage_name", "") == other.pop("stage_name", "")
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)
    one, two = (load_file(folder / "student/model.safetensors") for folder in (run, wanted))
    assert one.keys() == two.keys()
    for name, weight in two.items():
        torch.testing.assert_close(one[name], weight, rtol=1e-4, atol=1e-5)


def test_fsdp2_on_two_processes(plain: Path, folder: Path) -> None:
    student = plain.name.removeprefix("plain-")
    recipe = recipe_of(folder, f"fsdp2-{student}", student, ranks=2)
    harness.in_ranks(2, launched, FSDP2, recipe)
    assert_near(folder / f"fsdp2-{student}", plain)


@pytest.mark.parametrize("stage", ["2", "3"])
def test_zero_on_one_process(stage: str, plain: Path, folder: Path) -> None:
    pytest.importorskip("deepspeed", reason="ZeRO needs pip install 'transmamba[deepspeed]'")
    student = plain.name.removeprefix("plain-")
    recipe = recipe_of(folder, f"zero{stage}-{student}", student)
    environment = {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    harness.in_ranks(1, launched, environment, recipe)
    assert_near(folder / f"zero{stage}-{student}", plain)
