"""How many tokens an expert takes, and which of them. Shapes: B rows, L tokens, E experts, k of them a
token."""

from __future__ import annotations

import torch
from torch import Tensor


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
    asks = in_order[:, None] == torch.arange(count, device=chosen.device)
    if real is not None:
        there = real[..., None].expand_as(chosen).transpose(0, 1).flatten()
        asks = asks & there[:, None]
        tokens = real.sum() * chosen.shape[-1]
    else:
        there, tokens = None, torch.tensor(chosen.numel(), device=chosen.device)
    turn = asks.cumsum(dim=0, dtype=torch.int32).gather(1, in_order[:, None])[:, 0]
    most = (capacity * tokens.double() / count + 1e-9).floor().clamp_min(1)
    fits = turn <= most
    fits = fits if there is None else fits & there
    return fits.view(chosen.shape[1], chosen.shape[0], -1).transpose(0, 1)
