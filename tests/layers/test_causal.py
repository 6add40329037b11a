"""CausalSSD against its definition: a recurrence token by token, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from transmamba.core.output import Context
from transmamba.layers.bidirectional import NEUTRAL_GATE
from transmamba.layers.causal import CausalSSD

HEADS, WIDTH, LENGTH = 3, 12, 9
# text of every kind that a row may hold: real tokens by segment, -1 for padding
ROWS = {
    "whole": [0] * 9,
    "right padding": [0] * 5 + [-1] * 4,
    "left padding": [-1] * 3 + [0] * 6,
    "a hole": [0] * 3 + [-1] * 2 + [0] * 4,
    "packed": [0] * 4 + [1] * 3 + [2] * 2,
    "packed, then padding": [3] * 4 + [1] * 3 + [-1] * 2,
    "an id that comes back": [0] * 3 + [1] * 3 + [0] * 3,
}


def recurrence(u: Tensor, p: dict[str, Tensor], row: list[int]) -> Tensor:
    """(L, D) of one row u (L, D): h_t = exp(dt_t A) h_(t-1) + dt_t x_t (x) B_t, y_t = h_t C_t, gated.

    At a padded token nothing happens to h; the convolution reads a 0 there.
    """
    size = u.shape[1] // HEADS
    projected = u @ p["qkv.weight"].T + p["qkv.bias"]
    kernel, outputs = p["conv1d.weight"][:, 0], []
    taps = kernel.shape[1]
    raw = u @ p["dt_proj.weight"].T + p["dt_proj.bias"]
    state, document, began = u.new_zeros(HEADS, size, size), None, 0
    for t, segment in enumerate(row):
        real = segment >= 0
        if real and document is not None and segment != document:
            state, began = torch.zeros_like(state), t
        document = segment if real else document
        mixed = p["conv1d.bias"]
        for j in range(taps):
            s = t + 1 + j - taps
            if s >= began and row[s] >= 0:
                mixed = mixed + kernel[:, j] * projected[s]
        C, B, x = (part.reshape(HEADS, size) for part in mixed.chunk(3))
        if real:
            dt = torch.log1p(raw[t].exp())
            decay = torch.exp(-dt * p["A_log"].exp())
            state = decay[:, None, None] * state + dt[:, None, None] * x[:, :, None] * B[:, None, :]
        outputs.append((state * C[:, None, :]).sum(-1).flatten() / math.sqrt(size))
    gate = u @ p["gate.weight"].T + p["gate.bias"]
    return (torch.stack(outputs) * gate * torch.sigmoid(gate)) @ p["proj.weight"].T + p["proj.bias"]


def make(randomise: Callable[..., None]) -> CausalSSD:
    mixer = CausalSSD(WIDTH, HEADS, length=6)
    randomise(mixer, seed=6)
    return mixer


def inputs() -> Tensor:
    return torch.randn(len(ROWS), LENGTH, WIDTH, generator=torch.Generator().manual_seed(7))


def filled(row: list[int]) -> list[int]:
    """Its segments; a padded token is of the document before it, or of the first."""
    ids, last = [], next(segment for segment in row if segment >= 0)
    for segment in row:
        last = segment if segment >= 0 else last
        ids.append(last)
    return ids


def contexts() -> tuple[Context, Tensor]:
    """Of all rows at once, and which of their tokens are real."""
    mask = torch.tensor(list(ROWS.values())) >= 0
    segments = torch.tensor([filled(row) for row in ROWS.values()], dtype=torch.int32)
    return Context(mask=mask, segments=segments), mask


def test_output_and_gradients_equal_the_recurrence(randomise: Callable[..., None]) -> None:
    mixer, u = make(randomise), inputs()
    truth = {name: p.detach().double().requires_grad_() for name, p in mixer.named_parameters()}
    u64, u32 = u.double().requires_grad_(), u.clone().requires_grad_()
    context, real = contexts()
    found = mixer(u32, context).output
    wanted = torch.stack([recurrence(row, truth, ids) for row, ids in zip(u64, ROWS.values(), strict=True)])
    assert wanted.std() > 0.1, "a test of nothing"
    torch.testing.assert_close(found.double()[real], wanted[real], rtol=1e-4, atol=1e-5)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(8)) * real[..., None]
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    pairs = {name: (parameter.grad, truth[name].grad) for name, parameter in mixer.named_parameters()}
    for name, (grad, truly) in {**pairs, "u": (u32.grad, u64.grad)}.items():
        assert grad is not None and truly is not None and truly.norm() > 0, name
        assert (grad.double() - truly).norm() <= 1e-4 * truly.norm(), name
    assert u32.grad is not None and not u32.grad[~real].any(), "padding has no gradient"


@pytest.mark.parametrize("taps", [1, 4])
def test_no_token_is_reached_from_behind(taps: int, randomise: Callable[..., None]) -> None:
    mixer = CausalSSD(WIDTH, HEADS, length=6, conv_kernel=taps)
    randomise(mixer)
    u = inputs()
    changed = u.clone()
    changed[:, 5:] += 1
    before, after = mixer(u).output, mixer(changed).output
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5] - after[:, 5]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_padding_adds_nothing_in_half_precision(dtype: torch.dtype, randomise: Callable[..., None]) -> None:
    mixer, u = make(randomise).to(dtype), inputs().to(dtype)
    mask = torch.ones(u.shape[:2], dtype=torch.bool)
    mask[:, :3] = False
    padded = mixer(u, Context(mask=mask)).output[:, 3:]
    torch.testing.assert_close(padded, mixer(u[:, 3:]).output, rtol=2e-2, atol=2e-2)
    assert padded.isfinite().all()


def test_starts_neutral() -> None:
    mixer = CausalSSD(WIDTH, HEADS, length=17)
    u = inputs()
    delta = torch.nn.functional.softplus(mixer.dt_proj(u))
    torch.testing.assert_close(delta, torch.full_like(delta, 1 / 17))
    mixed = mixer(u)
    parts = mixer.qkv(u).chunk(3, dim=-1)
    torch.testing.assert_close(mixed.parts["C"], parts[0])
    torch.testing.assert_close(mixed.parts["B"], parts[1])
    torch.testing.assert_close(mixer.A_log.exp(), torch.tensor([0.25, 1.0, 4.0]))
    assert pytest.approx(NEUTRAL_GATE) == mixer.gate.bias[0].item() and not mixer.gate.weight.any()
    assert mixed.half is None
