"""A distiller in a loop of one's own, given images and classes where a batch belongs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import tiny_student, tiny_teacher

import transmamba


@pytest.mark.parametrize("call", [lambda d, *x: d(*x), lambda d, *x: d.loss(*x)], ids=["forward", "loss"])
def test_tensors_are_refused_in_a_line(call: Callable[..., Any]) -> None:
    distiller = transmamba.Distiller(tiny_student(), tiny_teacher())
    images, classes = torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(transmamba.UserError, match=r"this is Tensor; write transmamba\.image_batch"):
        call(distiller, images, classes)
    assert call(distiller, transmamba.image_batch(images, classes))
