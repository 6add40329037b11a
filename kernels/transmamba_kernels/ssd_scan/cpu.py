"""The SSD scan in fast plain PyTorch: step sizes, gate, and one operator that walks through chunks of time.

In a chunk of Q tokens the tokens meet in a (Q, Q) matrix a head, C B' o decay; between chunks the state
passes. Some rows of the batch at a time, so that these matrices stay in cache; only the states between chunks
are kept, the backward makes the rest again. All exponents are differences that are at most 0 for a decay.
Layouts are those of blocks.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype, without_autocast
from ..packing import real_tokens, segments
from ..torch_ops import Operator, Outputs, differentiable, nothing
from .blocks import CHUNK, Chunk, Inputs, upper_triangles
from .decay import spanned
from .reference import finish, step_size

NAMES = ("x", "dt", "A", "B", "C", "D", "state")


def ssd_scan(
    x: Tensor,
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
    lengths: Tensor | None,
    return_final_state: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as in `transmamba_kernels.ssd_scan`. y (B, L, H, P), final state (B, H, P, N) or None."""
    dtype = compute_dtype(x, delta, A, B, C, D, z, delta_bias, initial_state)
    real = real_tokens(x.shape[1], seq_idx, lengths)
    dt = step_size(delta, delta_bias, delta_softplus, dtype, real)
    inputs = (x, dt, A, B, C, D, initial_state)
    keep = differentiable(*inputs)
    y, state = SSD(*inputs, segments(seq_idx, lengths, reverse), reverse, return_final_state, keep)
    return finish(y, x, None, z, real).to(x.dtype), state if return_final_state else None


def _forward(*arguments: Any) -> Outputs:
    """y (B, L, H, P), final state (B, H, P, N), states between chunks (chunks, B, G, N, h P) flattened, since
    torch compiles anew for an axis of 0, of 1 and of more."""
    *tensors, reverse, final, keep = arguments
    inputs = Inputs.of(tensors, reverse)
    (batch, _, heads, width), (groups, states) = inputs.x.shape, inputs.B.shape[2:]
    chunks, upper = inputs.chunks(), upper_triangles(inputs)
    y = torch.empty(inputs.x.shape, dtype=inputs.dtype, device=inputs.x.device)
    end = y.new_empty((batch, heads, width, states) if final else 0)
    kept = (max(0, len(chunks) - 1), batch, groups, states, heads // groups * width)
    between = y.new_empty(kept if keep else 0)
    with without_autocast(y.device):
        for rows in inputs.rows():
            state, before = inputs.first_state(rows), None
            for i, chunk in enumerate(chunks):
                part = Chunk(inputs, rows, chunk, before, upper[chunk.stop - chunk.start])
                before = part.last
                out = ((part.decay * part.match) @ part.by_head(part.u)).permute(0, 3, 1, 2, 4).flatten(2, 3)
                if state is not None:
                    out.addcmul_(part.by_token(part.C @ state), part.from_start.unsqueeze(-1))
                if inputs.D is not None:
                    out.addcmul_(part.x, _skip(inputs.D, inputs.dtype))
                inputs.put(y, rows, chunk, out)
                if final or i < len(chunks) - 1:
                    state = _pass_on(part, state)
                    if keep and i < len(chunks) - 1:
                        between[i, rows] = state
            if final:
                end[rows] = 0 if state is None else inputs.as_given(state)
    return y, end, between.flatten()


def _between(inputs: Inputs, kept: Tensor) -> Tensor:
    """The states between chunks in their shape again."""
    (batch, _, heads, width), (groups, states) = inputs.x.shape, inputs.B.shape[2:]
    shape = (batch, groups, states, heads // groups * width)
    return kept.view(kept.numel() // max(1, math.prod(shape)), *shape)


def _pass_on(part: Chunk, state: Tensor | None) -> Tensor:
    added = part.B.transpose(-1, -2) @ part.flat(part.u * part.to_end.unsqueeze(-1))
    return added if state is None else added.add_(part.faded(state))


def _skip(D: Tensor, dtype: torch.dtype) -> Tensor:
    """(H, P) or (H, 1)."""
    return (D if D.dim() == 2 else D.unsqueeze(-1)).to(dtype)


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    reverse, final, _ = flags
    inputs, (grad_y, grad_end) = Inputs.of(tensors, reverse), grads
    dtype, groups, between = inputs.dtype, inputs.B.shape[2], _between(inputs, saved[0])
    found = {
        name: torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)
        for name, tensor in zip(NAMES, tensors, strict=False)
        if tensor is not None
    }
    chunks, upper = inputs.chunks(), upper_triangles(inputs)
    with without_autocast(inputs.x.device):
        for rows in inputs.rows():
            slope: Tensor | None = None
            if final:
                slope = grad_end[rows].to(dtype).unflatten(1, (groups, -1)).movedim(-1, 2).flatten(3)
            for i in range(len(chunks) - 1, -1, -1):
                chunk = chunks[i]
                before = None
                if i and inputs.ids is not None:
                    before = inputs.cut(inputs.ids, rows, chunks[i - 1])[:, -1:]
                part = Chunk(inputs, rows, chunk, before, upper[chunk.stop - chunk.start])
                state = between[i - 1, rows] if i else inputs.first_state(rows)
                gy = inputs.cut(grad_y, rows, chunk)
                slope = _retreat(inputs, part, gy, state, slope, rows, chunk, found)
            if "state" in found and slope is not None:
                found["state"][rows] = inputs.as_given(slope)
    fitted = [
        found[name].to(tensor.dtype) if tensor is not None else nothing(grad_y)
        for name, tensor in zip(NAMES, tensors, strict=False)
    ]
    return (*fitted, nothing(grad_y))


def _retreat(
    inputs: Inputs,
    part: Chunk,
    gy: Tensor,
    state: Tensor | None,
    slope: Tensor | None,
    rows: slice,
    chunk: slice,
    found: dict[str, Tensor],
) -> Tensor | None:
    """Puts one chunk's gradients into `found`; returns that of the state which enters it.

    state, slope: (b, G, N, h P), the state that enters and the gradient of the one that leaves, None for 0.
    """
    u, gy_heads = part.by_head(part.u), part.by_head(gy)
    weights = part.decay * part.match
    gu = (weights.transpose(-1, -2) @ gy_heads).permute(0, 3, 1, 2, 4).flatten(2, 3)
    pairs = torch.matmul(gy_heads, u.transpose(-1, -2)).mul_(part.decay)
    g_match = pairs.sum(2)
    # Of every step's log decay, (b, Q, H): what passes over it, from a token or state to a later one.
    g_log = spanned(pairs.mul_(part.match)).flatten(1, 2).transpose(1, 2)
    gC, gB = g_match @ part.B, g_match.transpose(-1, -2) @ part.C
    entering = None
    if state is not None:
        gy_faded = part.flat(gy * part.from_start.unsqueeze(-1))
        gC.add_(gy_faded @ state.transpose(-1, -2))
        entering = part.C.transpose(-1, -2) @ gy_faded
        received = part.by_token((part.C @ state).mul_(gy_faded)).sum(-1)
        g_log = g_log + received.flip(1).cumsum(1).flip(1)
    if slope is not None:
        u_end = part.flat(part.u * part.to_end.unsqueeze(-1))
        gB.add_(u_end @ slope.transpose(-1, -2))
        reach = part.B @ slope
        gu.addcmul_(part.by_token(reach), part.to_end.unsqueeze(-1))
        sent = part.by_token(reach.mul_(u_end)).sum(-1)
        g_log = g_log + F.pad(sent[:, :-1].cumsum(1), (0, 0, 1, 0))
        faded = part.faded(slope)
        if state is not None:
            through = (faded * state).unflatten(3, part.by_group[3:]).sum((2, 4)).flatten(1)
            g_log = g_log + through.unsqueeze(1)
        entering = faded if entering is None else entering.add_(faded)
    A = inputs.A.to(g_log.dtype)
    found["A"].add_((g_log * part.dt).sum((0, 1)))
    inputs.put(found["dt"], rows, chunk, torch.addcmul((gu * part.x).sum(-1), g_log, A))
    gx = gu.mul_(part.dt.unsqueeze(-1))
    if inputs.D is not None:
        gx.addcmul_(gy, _skip(inputs.D, gy.dtype))
        g_skip = (gy * part.x).sum((0, 1))
        found["D"].add_(g_skip if inputs.D.dim() == 2 else g_skip.sum(-1))
    inputs.put(found["x"], rows, chunk, gx)
    inputs.put(found["B"], rows, chunk, gB.transpose(1, 2))
    inputs.put(found["C"], rows, chunk, gC.transpose(1, 2))
    return entering


def _fake(*arguments: Any) -> Outputs:
    *tensors, reverse, final, keep = arguments
    inputs = Inputs.of(tensors, reverse)
    (batch, length, heads, width), states = inputs.x.shape, inputs.B.shape[3]
    y = inputs.x.new_empty(inputs.x.shape, dtype=inputs.dtype)
    # Counted without a list, which would fix a symbolic length.
    between = torch.sym_max(0, (length + CHUNK - 1) // CHUNK - 1)
    end = y.new_empty((batch, heads, width, states) if final else (0,))
    return y, end, y.new_empty(between * batch * heads * width * states if keep else 0)


SSD = Operator(
    "ssd_chunks",
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? initial_state, Tensor? ids, "
    "bool reverse, bool final, bool keep",
    2,
    _forward,
    _backward,
    _fake,
    1,
)
