"""The Triton kernels on tokens of a negative id, against the loops over tokens, which skip them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from test_padding_tokens import ALL, IDS, WITH_STATES, normal
from torch import Tensor

# Padding in front, between and behind; behind a sequence whose id comes back; nothing else.
ROWS = torch.cat([IDS, IDS.flip(1), torch.full_like(IDS, -2)])


def loop(op: Callable[..., Any]) -> Callable[..., Any]:
    def run(**arguments: Any) -> Any:
        with mock.patch.dict(os.environ, {"TRANSMAMBA_KERNELS": "reference"}):
            return op(**arguments)

    return run


def of(name: str, **more: Any) -> dict[str, Any]:
    arguments = ALL[name][1](len(ROWS)) | ALL[name][2] | more
    arguments.pop("initial_state", None)
    return {n: v.float() if isinstance(v, Tensor) else v for n, v in arguments.items()}


# those that keep states are below, with states
@pytest.mark.quick(dict(name="selective_scan"), *[dict(name=name) for name in ALL if "bidirectional" in name])
@pytest.mark.parametrize("name", ALL)
def test_negative_ids(agree_on_device, name):
    op = ALL[name][0]
    agree_on_device(op, loop(op), of(name) | {"seq_idx": ROWS}, forward=2e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", [name for name in WITH_STATES if "reversed" not in name])
def test_states_at_negative_ids(agree_on_device, name, reverse):
    op = ALL[name][0]
    arguments = of(name, reverse=reverse, return_final_state=True)
    start = normal(*loop(op)(**arguments)[1].shape).float()
    arguments |= {"initial_state": start, "seq_idx": ROWS.int()}
    agree_on_device(op, loop(op), arguments, forward=2e-5)


@pytest.mark.quick(dict(name="bidirectional_conv1d"), dict(name="causal_conv1d, reversed"))
@pytest.mark.parametrize("name", [name for name in ALL if "conv1d" in name])
def test_what_padding_holds_is_not_read(device, name):
    """By the convolutions; the scans need it finite."""
    op, arguments = ALL[name][0], of(name)
    first = next(iter(arguments))
    padding = (ROWS < 0).view(*ROWS.shape, *[1] * (arguments[first].dim() - 2))
    arguments |= {"seq_idx": ROWS, first: arguments[first].masked_fill(padding, torch.nan)}
    placed = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in arguments.items()}
    leaves = [v.requires_grad_() for v in placed.values() if isinstance(v, Tensor) and v.is_floating_point()]
    found = op(**placed)
    total = sum(y.sum() for y in (found if isinstance(found, tuple) else (found,)))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(total, leaves))
