"""What writes for a student is made once, and is always of the weights that the student has now."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import llavas
import pytest
import torch
from hybrids import hybrid, llama, moved, texts
from torch import nn

from transmamba.ecosystems.generation import generate


def made(kind: str) -> tuple[Any, dict[str, torch.Tensor]]:
    if kind == "hybrid_lm":
        return moved(hybrid(llama(), 1)), {"text": texts()}
    student = llavas.llava(llavas.make(), image=dict(kind="vim"), decoder=dict(kind="hybrid"))
    return llavas.moved(student), llavas.together(left=True)


@pytest.mark.parametrize("kind", ("hybrid_lm", "llava"))
def test_a_student_is_made_stock_once_and_writes_by_its_weights_of_now(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, inputs = made(kind)
    student.eval()
    stock, count = type(student).stock, []
    monkeypatch.setattr(type(student), "stock", lambda self: count.append(1) or stock(self))

    def fresh(of: Any) -> torch.Tensor:
        return generate(stock(of), inputs, 6)

    first = student.generate(inputs, 6)
    assert torch.equal(first, fresh(student)) and torch.equal(student.generate(inputs, 6), first)
    assert len(count) == 1
    with torch.no_grad():  # as an optimizer moves them
        for parameter in student.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    second = student.generate(inputs, 6)
    assert torch.equal(second, fresh(student)) and not torch.equal(second, first) and len(count) == 1
    other = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    for name, tensor in other.items():
        if tensor.is_floating_point():
            other[name] = nn.Parameter(tensor + 0.2 * torch.randn_like(tensor))
    student.load_state_dict(other, assign=True)  # as a checkpoint puts others in their place
    third = student.generate(inputs, 6)
    assert torch.equal(third, fresh(student)) and not torch.equal(third, second) and len(count) == 2
    gone = weakref.ref(student)
    del student
    gc.collect()
    assert gone() is None  # nothing keeps it
