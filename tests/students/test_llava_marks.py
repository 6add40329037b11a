"""Image tokens and pictures of a row, where nobody waits for what a GPU has found."""

from __future__ import annotations

import pytest
import torch
from llavas import MARK, together

from transmamba import UserError
from transmamba.students.llava import marks


def test_pictures_that_do_not_come_row_by_row_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would stand in each other's places."""
    other = {**together(), "image_row": torch.tensor([2, 0, 2])}
    with pytest.raises(UserError, match=r"image_row is \[2, 0, 2\]; pictures stand row by row"):
        marks.rows_of_pictures(other, MARK, 4)
    monkeypatch.setattr(marks, "_on_the_device", lambda text: True)
    with pytest.raises(RuntimeError, match="pictures do not come row by row"):
        marks.rows_of_pictures(other, MARK, 4)


def test_a_step_on_a_gpu_asks_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = together(left=False)
    rows = marks.rows_of_pictures(inputs, MARK, 4)
    assert rows is not None and rows.tolist() == [0, 2, 2]
    monkeypatch.setattr(marks, "_on_the_device", lambda text: True)
    # any of these would wait
    for name in ("__bool__", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, lambda self: pytest.fail("waits for the GPU"))
    assert marks.rows_of_pictures(inputs, MARK, 4) is rows or rows is inputs["image_row"]
    monkeypatch.undo()
    monkeypatch.setattr(marks, "_on_the_device", lambda text: True)
    other = {**inputs, "image_row": torch.tensor([0, 0, 2])}
    with pytest.raises(RuntimeError, match="image tokens of a row are not those of its pictures"):
        marks.rows_of_pictures(other, MARK, 4)
