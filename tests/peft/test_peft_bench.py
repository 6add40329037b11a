"""Writing is timed for all kinds alike."""

from __future__ import annotations

from typing import Any

import peft_models as tiny
import pytest
import torch

from transmamba.bench import adapters
from transmamba.bench.adapters import FULL, Workload, _Tried


def test_nothing_needs_gradients_while_writing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else autocast's copies of the weights would be kept for the base alone."""
    seen: dict[str, bool] = {}

    def interleaved(kinds: Any, *args: Any, before: Any, **options: Any) -> dict[str, float]:
        for kind in kinds:
            before[kind]()
            both = (*tried.base.parameters(), *tried.wrapped.parameters())
            seen[kind] = any(parameter.requires_grad for parameter in both)
        return dict.fromkeys(kinds, 1.0)

    monkeypatch.setattr(adapters, "interleaved", interleaved)
    workload = Workload(batch=2, length=6, written=2, steps=1, precision="no")
    tried = _Tried(tiny.mamba(), {"lora_x": ["lora_x"]}, workload, torch.device("cpu"))
    tried._speeds()
    assert seen == {FULL: False, "lora_x": False}
    tried._steps()
    assert seen == {FULL: True, "lora_x": True}, "and are trained again"
