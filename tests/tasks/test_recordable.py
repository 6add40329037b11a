"""Tasks that say that their `change` may be recorded (`core.task.Task`): run here on tensors that lie on a
GPU in name alone, where whatever a recording refuses, or would freeze, is an error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from on_the_device import OnTheDevice
from torch._subclasses.fake_tensor import FakeTensorMode

from transmamba.config import registry
from transmamba.core.batch import Batch
from transmamba.core.task import Steps
from transmamba.data import Preprocessing
from transmamba.data.functions.numbered import Curriculum, Ramp
from transmamba.data.functions.prompts import Function
from transmamba.data.images.synthetic import Synthetic
from transmamba.runs.stages import recordable_of
from transmamba.tasks.image_classification import ImageClassificationConfig
from transmamba.tasks.in_context import InContext, InContextConfig

RAMP = Curriculum(dims=Ramp(start=5, step=1, every=1), points=Ramp(start=2, step=3, every=1))
NAMES = sorted(registry.FUNCTIONS)


def changed_on_the_device(task: InContext, batch: Batch) -> Batch:
    """Shapes and types of what `change` makes, on a device that is not there."""
    with FakeTensorMode() as fake:
        there = batch.map(lambda x: fake.from_tensor(x).to("cuda"))
        with OnTheDevice() as watch:
            made = task.change(there, 7)
    assert watch.operations > 50, "prompts are made here"
    return made


def tasks() -> Iterator[Any]:  # functions, a curriculum, rows
    """Every function as it is and as it was released, with and without a curriculum; all of them mixed."""
    for name in NAMES:
        kind = registry.FUNCTIONS[name]
        released = [kind(as_released=True)] if "as_released" in kind.__dataclass_fields__ else []
        for function in (kind(), *released):
            for curriculum in (None, RAMP):
                ids = [name, *(["released"] * (function in released)), *(["ramp"] * (curriculum is not None))]
                yield pytest.param((function,), curriculum, 6, id="-".join(ids))
    every = tuple(registry.FUNCTIONS[name](d=6) for name in NAMES)
    for rows in (18, 7, 2):  # whole turns; not whole; fewer rows than functions
        yield pytest.param(every, RAMP, rows, id=f"mixed-{rows}")


@pytest.mark.parametrize(("functions", "curriculum", "rows"), [*tasks()])
def test_it_waits_for_nothing_and_brings_nothing(
    functions: tuple[Function, ...], curriculum: Curriculum | None, rows: int
) -> None:
    config = InContextConfig(function=functions[0], mixed=functions[1:], curriculum=curriculum, prompts=64)
    task = config.build(None)
    assert task.recordable
    for batch in task.train_batches(Steps(micro_batch=rows, accumulation=2, num_steps=1)):
        made, there = task.change(batch, 0), changed_on_the_device(task, batch)
        here, away = made.tensors(), there.tensors()
        assert here.keys() == away.keys() >= {"input/points", "target/values", "target/asked"}
        assert all(here[name].shape == away[name].shape for name in here)
        assert all(here[name].dtype == away[name].dtype for name in here)


@pytest.mark.parametrize(("functions", "curriculum", "rows"), [*tasks()])
def test_it_is_of_the_tensors_alone(
    functions: tuple[Function, ...], curriculum: Curriculum | None, rows: int
) -> None:
    """Replayed on the tensors it was recorded with, whose numbers are another batch's by then."""
    config = InContextConfig(function=functions[0], mixed=functions[1:], curriculum=curriculum, prompts=64)
    task = config.build(None)
    first, *others = task.train_batches(Steps(micro_batch=rows, num_steps=3, seed=3))
    held = first.map(torch.clone)
    for other in others:
        for name, tensor in held.tensors().items():
            tensor.copy_(other.tensors()[name])
        torch.manual_seed(int(other.index[0]))
        before = torch.get_rng_state()
        replayed, plain = task.change(replace(held, counts={}), 1), task.change(other, 2)
        assert torch.equal(torch.get_rng_state(), before), "nothing is drawn from a generator"
        wanted = plain.tensors()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in replayed.tensors().items())


@pytest.mark.parametrize("rows", [9, 4, 1])
def test_rows_that_follow_one_another_are_each_its_function_s(rows: int) -> None:
    """However many of them, and wherever they begin."""
    functions = tuple(registry.FUNCTIONS[name](d=6) for name in ("linear", "sparse_parity", "many_outlier"))
    task = InContextConfig(function=functions[0], mixed=functions[1:]).build(None)
    for batch in task.train_batches(Steps(micro_batch=rows, accumulation=5, num_steps=1, seed=3)):
        made = task.change(batch, 0)
        for place, row in enumerate(batch.index.tolist()):
            numbers = batch.inputs["numbers"][place : place + 1]
            alone = task.rows.make_alone(row % 3, numbers)
            # products of one row and of several differ in their last bits
            torch.testing.assert_close(made.inputs["points"][place], alone.points[0])
            torch.testing.assert_close(made.targets["values"][place], alone.values[0])
            assert torch.equal(made.targets["asked"][place], alone.asked[0])
            assert bool(made.targets["signs"][place]) == (row % 3 == 1)


def test_who_mixes_pictures_by_a_seed_is_not_recorded() -> None:
    eight = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3)
    task = ImageClassificationConfig(data=Synthetic(size=8), mixup=0.5).build(eight)
    assert recordable_of([task, InContextConfig(function=registry.FUNCTIONS["linear"]()).build(None)]) == [1]
