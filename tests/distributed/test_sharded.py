"""FSDP2 on two processes and ZeRO on one are one plain process: every loss, evaluation, saving, resuming."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import harness
import pytest
import torch

from transmamba.errors import UserError
from transmamba.runs.recipe import Recipe

ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}

STRATEGIES = ("fsdp2", "zero2", "zero3")
# of ZeRO's two, whose strategy is one class, the one that cuts the weights too
MOST = ("fsdp2", "zero3", pytest.param("zero2", marks=pytest.mark.slow))


def recipe_of(folder: Path, name: str, student: str, ranks: int = 1, **changes: Any) -> Recipe:
    """Mixers alone; every registered loss at once, its features standardised and its tokens drawn; one that
    leaves the head without gradients, but in reach of weight decay. Two micro-batches a step and process.

    No stochastic depth, whose draws belong to a micro-batch.
    """
    kwargs = dict(harness.SHALLOW) if student == "vim" else dict(harness.TEACHER)
    model = dict(name="vim", model="vim_micro_patch2_8", kwargs=kwargs)
    if student == "ssd_vit":
        model = dict(name="ssd_vit")
    every: list[Any] = [
        dict(name=loss, standardize=True) if loss == "bidirectional" else loss
        for loss in harness.classifier_losses()
    ]
    values: dict[str, Any] = dict(
        student=model,
        stages=[
            dict(name="align", losses=["mixer"], steps=3, lr=3e-3),
            dict(name="distill", losses=every, steps=4, lr=3e-3, token_fraction=0.6, clip=1.0),
            dict(name="ends", losses=["feature"], steps=2, lr=3e-3, weight_decay=1.0),
        ],
        trainer=dict(
            global_batch=8,
            micro_batch=4 // ranks,
            save_every=2,
            log_every=1,
            eval_every=2,
            eval_batch_size=4,
            grad_checkpointing=student == "ssd_vit" and not name.startswith("plain"),
        ),
    )
    return harness.tiny_recipe(folder, output_dir=str(folder / name), **(values | changes))


def launched(environment: dict[str, str], recipe: Recipe) -> None:
    """As `accelerate launch` does it."""
    os.environ.update(environment)
    harness.run_quietly(recipe)


def poisoned(environment: dict[str, str], recipe: Recipe) -> None:
    """The last rank's images of one step are not finite; of another, only what the loss is said to be."""
    import transmamba.training.step as step

    seeded, reduce = step.Stepper._seeded, step.Stepper._reduce
    number = 0

    def spoilt(self: Any, batch: Any, at: int, m: int) -> Any:
        nonlocal number
        number, batch = at, seeded(self, batch, at, m)
        accelerator = self.accelerator
        if at == 4 and accelerator.process_index == accelerator.num_processes - 1:
            batch.inputs["image"].fill_(torch.nan)
        return batch

    def told(self: Any, *arguments: Any) -> Any:
        means, *others = reduce(self, *arguments)
        return ({**means, "kl": math.inf} if number == 5 else means), *others

    step.Stepper._seeded, step.Stepper._reduce = spoilt, told  # type: ignore[method-assign]
    launched(environment, recipe)


def stopped(environment: dict[str, str], recipe: Recipe) -> None:
    """Asked to stop within a step of the second stage, between two checkpoints."""
    os.environ.update(environment)
    harness.signalled(recipe, signal.SIGTERM, step=4)


def refused(strategy: str, recipe: Recipe) -> None:
    """Launched without any strategy."""
    with pytest.raises(UserError, match=f"was started with {strategy}.*accelerate/{strategy}.yaml"):
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


def environment_of(strategy: str) -> tuple[int, dict[str, str]]:
    """(processes, what the launcher sets): ZeRO works with one process where there is no GPU."""
    if strategy == "fsdp2":
        return 2, harness.FSDP2
    pytest.importorskip("deepspeed", reason="ZeRO needs pip install 'transmamba[deepspeed]'")
    return 1, {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": strategy[-1]}


def whole_run(strategy: str, student: str, folder: Path) -> Path:
    """The folder of an uninterrupted run, made once."""
    ranks, environment = environment_of(strategy)
    name = f"{strategy}-{student}"
    if not (folder / name / "results.json").exists():
        harness.in_ranks(ranks, launched, environment, recipe_of(folder, name, student, ranks))
    return folder / name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sharded_is_plain(strategy: str, plain: Path, folder: Path) -> None:
    """With activation checkpointing for one of the students."""
    harness.assert_near(whole_run(strategy, plain.name.removeprefix("plain-"), folder), plain)


@pytest.fixture(scope="module")
def skipped(folder: Path) -> Path:
    """The run of one plain process two of whose steps are not finite."""
    harness.finish(harness.start(poisoned, {}, recipe_of(folder, "plain-skipped", "vim")))
    return folder / "plain-skipped"


@pytest.mark.parametrize("strategy", MOST)
def test_a_step_that_is_not_finite_is_skipped(strategy: str, skipped: Path, folder: Path) -> None:
    """On all processes, whether it is a gradient of one of them or only a loss."""
    ranks, environment = environment_of(strategy)
    assert [row["step"] for row in harness.metrics_rows(skipped) if "loss" in row] == [1, 2, 3, 4, 7, 8, 9]
    harness.in_ranks(ranks, poisoned, environment, recipe_of(folder, f"{strategy}-skipped", "vim", ranks))
    harness.assert_near(folder / f"{strategy}-skipped", skipped)


@pytest.mark.slow  # what is killed goes on exactly, too: test_killed_ranks
@pytest.mark.parametrize("strategy", MOST)
def test_stopped_and_resumed(strategy: str, folder: Path) -> None:
    """Bit for bit the uninterrupted run; with another strategy it is refused by name."""
    ranks, environment = environment_of(strategy)
    cut = recipe_of(folder, f"{strategy}-cut", "vim", ranks)
    harness.in_ranks(ranks, stopped, environment, cut)
    assert not (folder / f"{strategy}-cut/results.json").exists()
    harness.in_ranks(ranks, refused, strategy, cut)
    harness.in_ranks(ranks, launched, environment, cut)
    ours, theirs = folder / f"{strategy}-cut", whole_run(strategy, "vim", folder)
    assert harness.metrics_rows(ours) == harness.metrics_rows(theirs)
    file = "student/model.safetensors"
    assert (ours / file).read_bytes() == (theirs / file).read_bytes()
