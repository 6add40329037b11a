"""The SSD scan as batched matrix products, heads in front of time, in chunks of 64 tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype
from .decay import CausalDecay
from .reference import step_size

CHUNK = 64


def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Arguments as in `transmamba_kernels.ssd_scan`. y (B, L, H, P), final state (B, H, P, N)."""
    dtype = compute_dtype(x, delta, A, B, C, D, delta_bias, initial_state)
    (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
    dt, wide = step_size(delta, delta_bias, delta_softplus, dtype), x.to(dtype)
    inputs = (dt * A.to(dtype), wide * dt.unsqueeze(-1), B.to(dtype), C.to(dtype))
    if reverse:
        inputs = tuple(tensor.flip(1) for tensor in inputs)  # type: ignore[assignment]
    size = min(CHUNK, max(1, length))
    log_decay, u, B, C = (_by_head(tensor, size) for tensor in inputs)
    # From here on: (B, G, heads of a group, chunks, Q, ...), with B and C shared by the heads of their group.
    log_decay, u = (tensor.unflatten(1, (groups, heads // groups)) for tensor in (log_decay, u))
    B, C = B.unsqueeze(2), C.unsqueeze(2)
    total = log_decay.cumsum(-1)
    within = (C @ B.transpose(-1, -2) * CausalDecay.apply(total)) @ u
    to_end = torch.exp(total[..., -1:] - total).unsqueeze(-1)
    added = (u * to_end).transpose(-1, -2) @ B  # what each chunk adds to the state, (..., P, N)
    if initial_state is None:
        state = wide.new_zeros(batch, groups, heads // groups, width, states)
    else:
        state = initial_state.to(dtype).unflatten(1, (groups, heads // groups))
    entering, final = _pass_states(total[..., -1].exp(), added, state)
    across = (C * torch.exp(total).unsqueeze(-1)) @ entering.transpose(-1, -2)
    y = (within + across).flatten(3, 4)[..., :length, :].flatten(1, 2).transpose(1, 2)
    if reverse:
        y = y.flip(1)
    if D is not None:
        y = y + wide * D.to(dtype).unsqueeze(-1)
    return y.to(x.dtype), final.flatten(1, 2).to(dtype)


def _by_head(tensor: Tensor, size: int) -> Tensor:
    """(B, L, H, ...) -> (B, H, chunks, Q, ...); zeros behind the last token: no decay, no input."""
    tensor = tensor.transpose(1, 2)
    missing = -tensor.shape[2] % size
    if missing:
        tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 3) + (0, missing))
    return tensor.contiguous().unflatten(2, (-1, size))


def _pass_states(decay: Tensor, added: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """decay (..., chunks), added (..., chunks, P, N): the state entering each chunk, the last one."""
    decays, parts = decay[..., None, None].unbind(-3), added.unbind(-3)
    entering = []
    for factor, part in zip(decays, parts, strict=True):
        entering.append(state)
        state = state * factor + part
    return torch.stack(entering, dim=-3) if entering else added, state
