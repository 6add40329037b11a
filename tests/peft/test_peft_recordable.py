"""A training pass with any method on our image students has nothing that a recording refuses: it is run on
tensors that lie on a GPU in name alone (`on_the_device`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from on_the_device import OnTheDevice
from peft import get_peft_model
from test_peft_students import PAIRS, images, student
from torch._subclasses.fake_tensor import FakeTensorMode

from transmamba.peft import MambaPeftConfig


def passes(name: str, methods: list[str]) -> int:
    """Operations of a pass, the second: what the first one keeps for all others may be made on the host."""
    model = get_peft_model(student(name), MambaPeftConfig(methods=methods)).train()
    tables = [table for module in model.modules() for table in (module._parameters, module._buffers)]
    held: list[tuple[dict[str, Any], str, Any]] = [
        (table, key, tensor) for table in tables for key, tensor in table.items() if tensor is not None
    ]
    plain = [tensor.detach() for _, _, tensor in held]
    pictures = images()
    with FakeTensorMode() as fake:
        for (table, key, tensor), numbers in zip(held, plain, strict=True):
            there = fake.from_tensor(numbers).to("cuda:0")
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            table[key] = torch.nn.Parameter(there, tensor.requires_grad) if is_parameter else there
        x = fake.from_tensor(pictures).to("cuda:0")
        model(x)
        with OnTheDevice() as watch:
            loss = model(x).square().sum()
        assert loss.requires_grad
    return watch.operations


@pytest.mark.parametrize("name", ["vim", "ssd_vit"])
def test_no_method_waits_for_the_device_or_brings_something(monkeypatch: Any, name: str) -> None:
    """All in one adapter, but `sdt`, whose choice is made before training."""
    monkeypatch.setenv("TRANSMAMBA_KERNELS", "reference")
    methods = [method for of, method in PAIRS if of == name and method != "sdt"]
    assert {"affix", "prompt", "initial_state", "lora_x"} < set(methods)
    assert passes(name, methods) > 300
