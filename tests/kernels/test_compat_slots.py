"""States in slots of a pool, of which negative ones are padding: rows as if alone, and nothing else moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_compat import CHANNELS, HEADS, STATES, TAPS, WIDTH, assert_near, heads_inputs, normal
from transmamba_kernels import compat

SLOTS = {
    "some": torch.tensor([3, -1, 0, -5], dtype=torch.int8),
    "none": torch.tensor([-1, -1, -2, -1], dtype=torch.int32),
    "all": torch.tensor([4, 0, 2, 1]),
}


def of_slots(name: str) -> tuple[Any, Any, torch.Tensor, str]:
    """(update of rows of a pool, update of one row alone, the pool, the name of the indices)."""
    if name.startswith("conv"):
        tokens = (3,) if name == "conv, three tokens" else ()
        x, weight = normal(4, CHANNELS, *tokens), normal(CHANNELS, TAPS)
        pool = normal(6, CHANNELS, TAPS)

        def conv(rows: slice, state: torch.Tensor, **more: Any) -> torch.Tensor:
            return compat.causal_conv1d_update(x[rows], state, weight, None, "silu", **more)

        return conv, x, pool, "conv_state_indices"
    a = heads_inputs(tied=name == "heads", batch=4)
    a.pop("state")

    def scan(rows: slice, state: torch.Tensor, **more: Any) -> torch.Tensor:
        taken = {n: v[rows] if n in ("x", "dt", "B", "C", "z") else v for n, v in a.items()}
        return compat.selective_state_update(state, **taken, **more)

    return scan, a["x"], normal(6, HEADS, WIDTH, STATES), "state_batch_indices"


@pytest.mark.parametrize("which", SLOTS)
@pytest.mark.parametrize("name", ["conv", "conv, three tokens", "heads", "channels of heads"])
def test_negative_slots_are_skipped(name, which):
    """Each row alone on its own state; nothing for padding, and no other state of the pool moves."""
    update, x, pool, indices = of_slots(name)
    expected_pool, expected = pool.clone(), torch.zeros_like(x)
    for row, slot in enumerate(SLOTS[which].tolist()):
        if slot >= 0:
            expected[row] = update(slice(row, row + 1), expected_pool[slot : slot + 1])[0]
    found = update(slice(None), pool, **{indices: SLOTS[which]})
    assert_near((found, pool), (expected, expected_pool))
    untouched = sorted(set(range(6)) - set(SLOTS[which].tolist()))
    assert torch.equal(pool[untouched], of_slots(name)[2][untouched])


@pytest.mark.parametrize("name", ["conv", "heads"])
def test_slots_are_not_read_by_the_host(name):
    """A graph in one piece asks for no number of a tensor, nor does a CUDA graph."""
    update, _, pool, indices = of_slots(name)

    def step(pool: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return update(slice(None), pool, **{indices: slots})

    graph = torch.compile(step, fullgraph=True, backend="eager")
    expected_pool = pool.clone()
    expected = update(slice(None), expected_pool, **{indices: SLOTS["some"]})
    assert_near((graph(pool, SLOTS["some"]), pool), (expected, expected_pool))


def test_slots_that_do_not_fit_are_named():
    update, _, pool, indices = of_slots("heads")
    with pytest.raises(ValueError, match=r"state_batch_indices: shape \(3,\), expected \(B,\) = \(4,\)"):
        update(slice(None), pool, **{indices: torch.tensor([0, 1, 2])})
    with pytest.raises(ValueError, match=r"state_batch_indices: dtype torch\.bool, expected an integer type"):
        update(slice(None), pool, **{indices: torch.ones(4, dtype=torch.bool)})
