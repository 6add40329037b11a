"""`compile_`: torch.compile of what lies between a hybrid's matrix products, one graph for all layers."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from hybrids import hybrid, make, moved, texts
from torch._dynamo.utils import counters

from transmamba.students.hybrid_lm import norms
from transmamba.training.optimizer import compile_layers


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_compiled_hybrid_is_the_hybrid(
    precision: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "compiled", cache(lambda f: torch.compile(f, backend="aot_eager")))
    student = moved(hybrid(make("SmolLM (tied)"), 1))
    fused = copy.deepcopy(student)
    names = list(fused.state_dict())
    torch._dynamo.reset()
    counters.clear()
    compile_layers(fused)
    assert list(fused.state_dict()) == names
    found = []
    for model in (student, fused):
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            made = model.run({"text": texts()}).logits
            assert made is not None
            logits = made()
        logits.float().logsumexp(-1).sum().backward()
        found.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"logits": logits}
        )
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        error = (found[1][name] - value).norm() / value.norm().clamp_min(1e-9)
        assert error < (1e-5 if precision is None else 2e-2), f"{name}: {error:.2e}"
    # norms, gated norms and gates, not one of each layer
    assert 0 < counters["stats"]["unique_graphs"] <= 5
