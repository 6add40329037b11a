"""The Triton operators compiled once for many lengths, as ../test_compile_dynamic.py has PyTorch's path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_compile_dynamic import CASES, compiled, outputs_and_gradients
from torch import Tensor

NAMES = ["causal_conv1d", "selective_scan", "bidirectional_scan", "ssd_scan", "bidirectional_ssd, scans"]


# opcheck traces the others with symbolic lengths as well
@pytest.mark.quick(
    dict(name="causal_conv1d"), *[dict(name=name) for name in NAMES if "bidirectional" in name]
)
@pytest.mark.parametrize("name", NAMES)
def test_one_graph_for_all_lengths(device, size, monkeypatch, name):
    monkeypatch.undo()  # torch.compile traces torch.empty
    op, make, switches = CASES[name]
    graph, counter = compiled(op)
    for length in size((65, 130, 197, 500, 785), (2, 3, 5)):
        torch.manual_seed(0)
        arguments: dict[str, Any] = make(2, length) | switches
        placed = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in arguments.items()}
        found, expected = (outputs_and_gradients(run, placed) for run in (graph, op))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    assert counter.frame_count <= 2
