"""How many tokens an expert takes, and which of them. Shapes: B rows, L tokens, E experts, k of them a
token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# a share that is a whole number stays one
_ROUNDED = 1e-9


def capacity_problems(capacity: float | None, count: int | None = None, each: int = 1) -> list[str]:
    """What is wrong with a capacity factor: below 1 tokens are dropped even where all experts have as
    many; of `count` experts, `each` of them a token, from count / each on an expert is never full."""
    if capacity is None:
        return []
    if not 1 <= capacity < float("inf"):
        return [f"capacity is {capacity}; write a factor of at least 1, or null to drop no token"]
    if count is None or capacity * each < count:
        return []
    return [
        f"capacity is {capacity}, at which no expert is ever full: each of {count} has room for all tokens, "
        f"of which each has {each}; write less than {count / each:g}, or null to drop no token"
        if count > each
        else f"capacity is {capacity}, but each token has all {count} experts; leave it out"
    ]


@torch.no_grad()
def within_capacity(chosen: Tensor, count: int, capacity: float, real: Tensor | None = None) -> Tensor:
    """(B, L, k) bool: whether an expert still takes a token: the first floor(capacity tokens k / E) of the
    batch that chose it, at least one. First comes what stands earlier in its row; of one place in several
    rows, the earlier row; of one token, its likelier expert. So no token of a row is dropped for what
    comes later in that row [ours: Switch Transformers' public code counts row by row, MoE-Mamba's keeps
    some of the batch, whichever topk finds].

    chosen (B, L, k), real (B, L)
    """
    in_order = chosen.transpose(0, 1).flatten()  # place, row, choice
    # an expert's turns in a row of their own: along columns a GPU adds up one token after the other
    asks = torch.arange(count, device=chosen.device)[:, None] == in_order
    most: Tensor | int
    if real is None:
        there, most = None, most_of(capacity, chosen.numel(), count)
    else:
        there = real[..., None].expand_as(chosen).transpose(0, 1).flatten()
        asks = asks & there
        tokens = real.sum() * chosen.shape[-1]
        most = (capacity * tokens.double() / count + _ROUNDED).floor().clamp_min(1)
    turn = asks.cumsum(dim=1, dtype=torch.int32).gather(0, in_order[None])[0]
    fits = turn <= most
    fits = fits if there is None else fits & there
    return fits.view(chosen.shape[1], chosen.shape[0], -1).transpose(0, 1)


def most_of(capacity: float, tokens: int, count: int) -> int:
    """Tokens that an expert takes. A number of the host's: made a tensor on a GPU it would wait for that,
    which a recorded step cannot (`trainer.cuda_graphs`)."""
    return max(1, math.floor(capacity * tokens / count + _ROUNDED))
