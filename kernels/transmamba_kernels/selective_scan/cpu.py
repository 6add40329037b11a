"""The selective scan in fast plain PyTorch: one operator over the whole of S6.

A block of batch rows is scanned in chunks of time whose buffers stay in cache; in a chunk all decays are one
multiply and one exp2, all inputs one multiply, and each time step is a single in-place addcmul_. Only the
states between chunks are kept; the backward recomputes the rest. Products of decays are never divided out, so
no decay, however strong, can overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype, without_autocast
from ..packing import real_tokens, zero_padding
from ..torch_ops import Operator, Outputs, differentiable, fitted, or_nothing
from .blocks import (
    LOG2_E,
    Block,
    Plan,
    Room,
    Saved,
    Switches,
    count_steps,
    from_groups,
    time_first,
    to_groups,
)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    return_final_state: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as in `transmamba_kernels.selective_scan`. y (B, L, D), final state (B, D, N) or None."""
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    keep = differentiable(*inputs)
    y, state = SCAN(*inputs, seq_idx, delta_softplus, reverse, return_final_state, keep)
    return y, state if return_final_state else None


def _run(*arguments: Any) -> Outputs:
    tensors: tuple[Any, ...] = arguments[:10]
    switches = Switches(*arguments[10:])
    dtype = compute_dtype(*tensors[:-1])
    saved = Saved(*tensors)
    with without_autocast(saved.u.device):
        total, state, between = _forward(saved.grouped(), dtype, switches)
        y = total if saved.z is None else total * F.silu(saved.z.to(dtype))
        y = zero_padding(y, real_tokens(y.shape[1], saved.seq_idx, None))
    y = y.to(saved.u.dtype)
    ungated = total if switches.differentiable and saved.z is not None else None
    # Flattened: torch compiles anew for an axis of 0, of 1 and of more.
    between = None if between is None else between.flatten()
    return y, *(or_nothing(x, total) for x in (state, ungated, between))


def _fake(*arguments: Any) -> Outputs:
    u, A, z = arguments[0], arguments[2], arguments[6]
    switches = Switches(*arguments[10:])
    dtype = compute_dtype(*arguments[:9])
    (batch, length, channels), states = u.shape, A.shape[1]

    def like(*shape: int) -> Tensor:
        return u.new_empty(shape, dtype=dtype)

    between = torch.sym_max(0, count_steps(batch, length, channels * states, u.device) - 1)
    kept = switches.differentiable
    return (
        torch.empty(u.shape, dtype=u.dtype, device=u.device),
        like(batch, channels, states) if switches.final_state else like(0),
        like(*u.shape) if kept and z is not None else like(0),
        like(between * batch * states * channels) if kept else like(0),
    )


def _differentiate(
    grads: Outputs, tensors: tuple[Any, ...], kept: Outputs, flags: tuple[Any, ...]
) -> Outputs:
    switches = Switches(*flags)
    dtype = compute_dtype(*tensors[:-1])
    saved = Saved(*tensors).grouped()
    (batch, _, channels), states, groups = saved.u.shape, saved.A.shape[1], saved.B.shape[2]
    state = (batch, groups, states, channels // groups)
    between = kept[1].view(kept[1].numel() // max(1, math.prod(state)), *state)
    saved = saved._replace(ungated=kept[0], between=between)
    grad_z = None
    with without_autocast(saved.u.device):
        grad = zero_padding(grads[0].to(dtype), real_tokens(grads[0].shape[1], saved.seq_idx, None))
        if saved.z is not None:
            z = saved.z.to(dtype)
            gate = torch.sigmoid(z)
            assert saved.ungated is not None
            # silu'(z) = s (1 + z (1 - s)), with s the sigmoid
            grad_z = (grad * saved.ungated).mul_(torch.addcmul(gate, gate * z, 1 - gate))
            grad = grad * gate.mul_(z)
        g = _backward(saved, grad, grads[1] if switches.final_state else None, dtype, switches)
    found = (g.u, g.delta, g.A, g.B, g.C, g.D, grad_z, g.delta_bias, g.state, None)
    return fitted(found, tensors, saved.u)


def _forward(
    saved: Saved, dtype: torch.dtype, switches: Switches
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Ungated y (B, L, D), final state (B, D, N) or None, states between chunks (n - 1, B, G, N, D/G)."""
    (batch, length, channels), states, groups = saved.u.shape, saved.A.shape[1], saved.B.shape[2]
    width = channels // groups
    plan = Plan.make(batch, length, channels * states, saved.u.device, switches.reverse)
    A = (to_groups(saved.A, groups).to(dtype) * LOG2_E).contiguous()
    total = torch.empty(saved.u.shape, dtype=dtype, device=saved.u.device)
    final = total.new_empty(batch, channels, states) if switches.final_state else None
    between = None
    if switches.differentiable:
        between = total.new_empty(max(0, len(plan.steps) - 1), batch, groups, states, width)
    if not (batch and length):
        if final is not None:
            _ = final.zero_() if saved.initial_state is None else final.copy_(saved.initial_state)
        return total, final, between
    decays, slots = _rooms(plan, A, total)
    for rows in plan.rows:
        block = Block.load(rows, saved, dtype, switches)
        enter = None if saved.initial_state is None else to_groups(saved.initial_state[rows], groups)
        y = torch.empty_like(block.u)
        for i, steps in enumerate(plan.steps):
            if i and between is not None:
                assert enter is not None
                between[i - 1, rows].copy_(enter)
            chunk = block.advance(steps, A, enter, decays, slots, switches.reverse)
            _contract(block.C[steps], chunk.after, out=y[steps])
            enter = chunk.last
        if saved.D is not None:
            y.addcmul_(block.u, saved.D.to(dtype).view(groups, width))
        total[rows].copy_(y.flatten(2).transpose(0, 1))
        if final is not None:
            assert enter is not None
            final[rows].copy_(from_groups(enter))
    return total, final, between


def _rooms(plan: Plan, A: Tensor, like: Tensor) -> tuple[Room, Room]:
    """For the decays, and for the states with one slot more: the state that enters."""
    steps, *rest = plan.buffer_shape(A.shape)
    return Room(steps, *rest, like=like), Room(steps + 1, *rest, like=like)


def _contract(row: Tensor, matrix: Tensor, out: Tensor | None = None) -> Tensor:
    """Sum over N: (q, b, G, N), (q, b, G, N, W) -> (q, b, G, W)."""
    flat = None if out is None else out.view(-1, 1, out.shape[-1])
    result = torch.bmm(row.reshape(-1, 1, row.shape[-1]), matrix.reshape(-1, *matrix.shape[-2:]), out=flat)
    return result.view(*matrix.shape[:3], matrix.shape[-1])


def _contract_channels(row: Tensor, matrix: Tensor) -> Tensor:
    """Sum over channels: (q, b, G, W), (q, b, G, N, W) -> (q, b, G, N)."""
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    return torch.bmm(row.reshape(-1, 1, row.shape[-1]), flat.transpose(1, 2)).view(matrix.shape[:-1])


@dataclass
class Gradients:
    """Of the inputs, in the scan's own arithmetic; u, delta (B, L, D), B and C with their axis of groups."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    delta_bias: Tensor | None = None
    state: Tensor | None = None


def _backward(
    saved: Saved, grad: Tensor, grad_state: Tensor | None, dtype: torch.dtype, switches: Switches
) -> Gradients:
    """`grad` (B, L, D) is the gradient of the ungated output."""
    (batch, length, channels), states, groups = saved.u.shape, saved.A.shape[1], saved.B.shape[2]
    plan = Plan.make(batch, length, channels * states, grad.device, switches.reverse)
    A = to_groups(saved.A, groups).to(dtype).contiguous()
    grad_A = torch.zeros_like(A)
    out = Gradients(
        u=torch.empty(saved.u.shape, dtype=dtype, device=grad.device),
        delta=torch.empty(saved.u.shape, dtype=dtype, device=grad.device),
        A=grad_A,
        B=torch.empty(saved.B.shape, dtype=dtype, device=grad.device),
        C=torch.empty(saved.C.shape, dtype=dtype, device=grad.device),
    )
    if saved.initial_state is not None:
        out.state = grad.new_zeros(batch, channels, states)
    if saved.D is not None:
        out.D = (grad * saved.u).sum((0, 1))
    if batch and length:
        rooms = (*_rooms(plan, A, grad), Room(*plan.buffer_shape(A.shape), like=grad))
        for rows in plan.rows:
            _backward_rows(rows, plan, saved, grad, grad_state, A, rooms, out, switches)
    elif out.state is not None and grad_state is not None:
        out.state.copy_(grad_state)
    out.A = from_groups(grad_A)
    if saved.delta_bias is not None:
        out.delta_bias = out.delta.sum((0, 1))
    return out


def _backward_rows(
    rows: slice,
    plan: Plan,
    saved: Saved,
    grad: Tensor,
    grad_state: Tensor | None,
    A: Tensor,
    rooms: tuple[Room, Room, Room],
    out: Gradients,
    switches: Switches,
) -> None:
    """One block of batch rows: fills its part of `out`, adds to `out.A`."""
    dtype, groups, reverse = grad.dtype, A.shape[0], switches.reverse
    block = Block.load(rows, saved, dtype, switches)
    A2 = A * LOG2_E
    decays, slots, g_room = rooms
    g_y = time_first(grad[rows], dtype).view_as(block.u)
    g_x, g_dt = torch.empty_like(block.u), torch.empty_like(block.u)
    carry = None if grad_state is None else to_groups(grad_state[rows], groups).to(dtype)
    for i in range(len(plan.steps) - 1, -1, -1):
        steps = plan.steps[i]
        if i:
            assert saved.between is not None
            enter: Tensor | None = saved.between[i - 1, rows]
        else:
            enter = None if saved.initial_state is None else to_groups(saved.initial_state[rows], groups)
        chunk = block.advance(steps, A2, enter, decays, slots, reverse)
        g = g_room.take(*chunk.decay.shape[:2])
        carry = _retreat(g, chunk.decay, block.C[steps], g_y[steps], carry, reverse)
        out.C[rows, steps].copy_(_contract_channels(g_y[steps], chunk.after).transpose(0, 1))
        out.B[rows, steps].copy_(_contract_channels(block.x[steps], g).transpose(0, 1))
        _contract(block.B[steps], g, out=g_x[steps])
        # The gradient of the exponent, dt A. The states are done with: their room serves as scratch.
        exponent = chunk.decay.mul_(chunk.before).mul_(g)
        scratch = slots.take(*exponent.shape[:2])
        torch.sum(torch.mul(exponent, A, out=scratch), -2, out=g_dt[steps])
        out.A.add_(exponent.mul_(block.dt[steps].unsqueeze(-2)).sum((0, 1)))
    if out.state is not None:
        assert carry is not None
        out.state[rows].copy_(from_groups(carry))
    g_dt.addcmul_(g_x, block.u)
    if switches.softplus:
        g_dt.mul_(torch.expm1(-block.dt).neg_())  # the sigmoid of what went into the softplus
    if block.padding is not None:
        g_dt.masked_fill_(block.padding, 0)
    g_u = g_x.mul_(block.dt)
    if saved.D is not None:
        g_u.addcmul_(g_y, saved.D.to(dtype).view(groups, -1))
    out.u[rows].copy_(g_u.flatten(2).transpose(0, 1))
    out.delta[rows].copy_(g_dt.flatten(2).transpose(0, 1))


def _retreat(g: Tensor, decay: Tensor, C: Tensor, g_y: Tensor, carry: Tensor | None, reverse: bool) -> Tensor:
    """Fills `g`, the gradient of each step's state; returns that of the state which entered the chunk."""
    torch.mul(g_y.unsqueeze(-2), C.unsqueeze(-1), out=g)
    gs, decays = g.unbind(0), decay.unbind(0)
    first, last = (len(gs) - 1, 0) if reverse else (0, len(gs) - 1)
    if carry is not None:
        gs[last].add_(carry)
    if reverse:
        for t in range(1, len(gs)):
            gs[t].addcmul_(decays[t - 1], gs[t - 1])
    else:
        for t in range(len(gs) - 2, -1, -1):
            gs[t].addcmul_(decays[t + 1], gs[t + 1])
    return decays[first] * gs[first]


SCAN = Operator(
    "selective_scan_cpu",
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, Tensor? seq_idx, bool softplus, bool reverse, bool final, bool keep",
    visible=2,
    forward=_run,
    backward=_differentiate,
    fake=_fake,
    saved=2,
)
