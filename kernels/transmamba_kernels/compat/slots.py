"""States of a few rows in a pool of many, as servers of continuous batches keep them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..shapes import expect, expect_integers


def step_in_slots(
    name: str, pool: Tensor, slots: Tensor, batch: int, step: Callable[[Tensor], Tensor]
) -> Tensor:
    """y (B, ...) of `step`, which moves states (B, ...) on in place: those that the pool (S, ...) holds in
    `slots` (B,), and holds moved afterwards. A negative slot is padding: its y is 0, and no state moves.

    Raises ValueError, under `name`, for slots that are no integers or not one a row.
    """
    expect(name, slots, "(B,)", batch)
    expect_integers(pool.device, **{name: slots})
    slots = slots.long()
    states = pool[slots.clamp(min=0)]
    y = step(states)
    if not batch:
        return y
    # Which rows are padding the host cannot know without waiting for the device. They write what the first
    # other row writes too, or, where there is none, what slot 0 holds.
    real = slots >= 0
    first = real.int().argmax().unsqueeze(0)
    again = torch.where(_rows(real[first], pool), states[first], pool[:1])
    pool[torch.where(real, slots, slots[first]).clamp(min=0)] = torch.where(_rows(real, pool), states, again)
    return y.masked_fill(~_rows(real, y), 0)


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    """(B, 1, ...) of (B,)."""
    return mask.view(-1, *[1] * (like.dim() - 1))
