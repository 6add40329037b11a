"""Launches of many batch rows: CUDA allows 65535 programs along the second and third axis of a grid."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

ROWS = 200_000


class Recorder:
    """Stands for a kernel, and keeps the grids it is launched with."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return lambda *args, **kwargs: None


@pytest.mark.parametrize(
    ("op", "step", "kernel", "shapes", "flags"),
    [
        ("causal_conv1d", "_update", "update_kernel", [(ROWS, 4), (ROWS, 4, 3), (4, 4), None], [True]),
        (
            "ssd_state_update",
            "_step",
            "step_kernel",
            [(ROWS, 2, 3, 4), (ROWS, 2, 3), (ROWS, 2), (2,), (ROWS, 1, 4), (ROWS, 1, 4), None, None, None],
            [True],
        ),
        (
            "selective_state_update",
            "_step",
            "step_kernel",
            [(ROWS, 3, 4), (ROWS, 3), (ROWS, 3), (3, 4), (ROWS, 4), (ROWS, 4), None, None, None],
            [True],
        ),
    ],
)
def test_steps_of_many_rows_fit_the_grid(monkeypatch, op, step, kernel, shapes, flags):
    gpu = importlib.import_module(f"transmamba_kernels.{op}.gpu")
    recorder = Recorder()
    monkeypatch.setattr(gpu, kernel, recorder)
    tensors = [None if shape is None else torch.empty(shape, device="meta") for shape in shapes]
    getattr(gpu, step)(*tensors, *flags)
    ((first, *rest),) = recorder.grids
    assert first >= ROWS // 2
    assert all(size <= 65535 for size in rest)
