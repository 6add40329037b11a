"""BidirectionalMamba against Vim's mixer written out token by token in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transmamba_kernels import bidirectional_scan

from transmamba.layers import bidirectional
from transmamba.layers.bidirectional import NEUTRAL_GATE, BidirectionalMamba

P = dict[str, Tensor]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def one_direction(x: Tensor, z: Tensor, p: P, conv: str, proj: str, dt_name: str, a: str, d: str) -> Tensor:
    """x, z (L, E) in scan order -> gated y (L, E): convolution, delta, B, C, scan, skip, gate."""
    length, inner = x.shape
    kernel = p[f"{conv}.weight"][:, 0]
    taps = kernel.shape[1]
    convolved = []
    for t in range(length):
        total = p[f"{conv}.bias"].clone()
        for j in range(taps):
            if t - (taps - 1) + j >= 0:
                total = total + kernel[:, j] * x[t - (taps - 1) + j]
        convolved.append(silu(total))
    rank, states = p[f"{dt_name}.weight"].shape[1], p[a].shape[1]
    A = -torch.exp(p[a])
    h = torch.zeros(inner, states, dtype=x.dtype)
    outputs = []
    for t in range(length):
        raw = p[f"{proj}.weight"] @ convolved[t]
        delta, B, C = raw[:rank], raw[rank : rank + states], raw[rank + states :]
        dt = torch.log1p(torch.exp(p[f"{dt_name}.weight"] @ delta + p[f"{dt_name}.bias"]))
        h = torch.exp(dt[:, None] * A) * h + (dt * convolved[t])[:, None] * B[None]
        outputs.append((h @ C + p[d] * convolved[t]) * silu(z[t]))
    return torch.stack(outputs)


def vim_mixer(u: Tensor, p: P) -> tuple[Tensor, Tensor, Tensor]:
    """(merged, forward branch, backward branch), each (B, L, D), of u (B, L, D)."""
    merged: list[Tensor] = []
    ahead: list[Tensor] = []
    back: list[Tensor] = []
    for tokens in u:
        xz = tokens @ p["in_proj.weight"].T
        xz = xz + p["in_proj.bias"] if "in_proj.bias" in p else xz
        x, z = xz.chunk(2, dim=-1)
        z = z + p["gate_bias"] if "gate_bias" in p else z
        y_f = one_direction(x, z, p, "conv1d", "x_proj", "dt_proj", "A_log", "D")
        y_b = one_direction(x.flip(0), z.flip(0), p, "conv1d_b", "x_proj_b", "dt_proj_b", "A_b_log", "D_b")
        y_b = y_b.flip(0)
        for kept, y in ((merged, (y_f + y_b) / 2), (ahead, y_f), (back, y_b)):
            out = y @ p["out_proj.weight"].T
            kept.append(out + p["out_proj.bias"] if "out_proj.bias" in p else out)
    return torch.stack(merged), torch.stack(ahead), torch.stack(back)


def make(randomise: Callable[..., None], **options: Any) -> BidirectionalMamba:
    mixer = BidirectionalMamba(20, d_state=5, **options)  # rank 2, odd sizes
    randomise(mixer, seed=4)
    return mixer


@pytest.mark.parametrize("options", [{}, dict(proj_bias=True, gate_bias=True), dict(expand=1, d_conv=3)])
def test_output_branches_and_gradients_equal_the_loop(
    options: dict[str, Any], randomise: Callable[..., None]
) -> None:
    mixer = make(randomise, **options)
    u = torch.randn(2, 7, 20, generator=torch.Generator().manual_seed(5))
    truth: P = {
        name: parameter.detach().double().requires_grad_() for name, parameter in mixer.named_parameters()
    }
    u64, u32 = u.double().requires_grad_(), u.clone().requires_grad_()
    expected = vim_mixer(u64, truth)
    mixed = mixer(u32, branches=True)
    assert mixed.half is not None
    spread = mixed.half @ mixer.out_proj.weight.T
    found = (mixed.output, mixed.output + spread, mixed.output - spread)
    for mine, wanted in zip(found, expected, strict=True):
        assert wanted.abs().max() > 0.1, "a test of nothing"
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-4, atol=1e-5)
    weights = [torch.randn(2, 7, 20, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    torch.stack([(y * w).sum() for y, w in zip(found, weights, strict=True)]).sum().backward()
    torch.stack([(y * w).sum() for y, w in zip(expected, weights, strict=True)]).sum().backward()
    pairs = {name: (parameter.grad, truth[name].grad) for name, parameter in mixer.named_parameters()}
    for name, (grad, truly) in {**pairs, "u": (u32.grad, u64.grad)}.items():
        assert grad is not None and truly is not None and truly.norm() > 0, name
        assert (grad.double() - truly).norm() <= 1e-4 * truly.norm(), name


def test_without_branches_the_output_is_the_same(randomise: Callable[..., None]) -> None:
    mixer = make(randomise)
    u = torch.randn(2, 7, 20)
    alone, both = mixer(u), mixer(u, branches=True)
    assert alone.half is None
    torch.testing.assert_close(alone.output, both.output)
    positions = torch.tensor([5, 0, 2])
    subset = mixer(u, branches=True, tokens=positions)
    torch.testing.assert_close(subset.half, both.half[:, positions])
    torch.testing.assert_close(subset.output, both.output)
    assert {name: part.shape for name, part in both.parts.items()} == dict.fromkeys(
        ("B", "C", "B_b", "C_b"), (2, 7, 5)
    )


def test_each_branch_sees_one_side_only(randomise: Callable[..., None]) -> None:
    mixer = make(randomise)
    u = torch.randn(1, 7, 20)
    changed = u.clone()
    changed[:, 3] += 1
    first, second = mixer(u, branches=True), mixer(changed, branches=True)
    spread = [mixed.half @ mixer.out_proj.weight.T for mixed in (first, second)]
    ahead = ((second.output + spread[1]) - (first.output + spread[0])).abs().amax(-1)[0] > 1e-6
    back = ((second.output - spread[1]) - (first.output - spread[0])).abs().amax(-1)[0] > 1e-6
    assert ahead.tolist() == [False] * 3 + [True] * 4
    assert back.tolist() == [True] * 4 + [False] * 3


def test_deltas_of_both_directions_start_small() -> None:
    mixer = BidirectionalMamba(64)
    for linear in (mixer.dt_proj, mixer.dt_proj_b):
        delta = nn.functional.softplus(linear.bias)
        assert delta.min() >= 0.99e-3 and delta.max() <= 1.01e-1
        # log-uniform: as many below the geometric mean of 0.001 and 0.1 as above
        assert 0.3 < float((delta < 0.01).float().mean()) < 0.7
        assert linear.weight.abs().max() <= linear.in_features**-0.5


def test_states_decay_at_their_own_number() -> None:
    mixer = BidirectionalMamba(16, d_state=3)
    for log in (mixer.A_log, mixer.A_b_log):
        torch.testing.assert_close(log.exp(), torch.tensor([1.0, 2.0, 3.0]).expand(32, 3))
    assert bool((mixer.D == 1).all()) and bool((mixer.D_b == 1).all())


def test_neutral_gate_is_one() -> None:
    assert NEUTRAL_GATE / (1 + math.exp(-NEUTRAL_GATE)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("options", [dict(gate_bias=True), dict(proj_bias=True)])
def test_mimic_lets_the_value_path_through(options: dict[str, Any], randomise: Callable[..., None]) -> None:
    """With the scans' own part removed (C = 0, D = 1) what is left is out_proj(silu(in_proj_x(u)))."""
    mixer = make(randomise, **options)
    assert not mixer.has_identity_conv()
    mixer.mimic_()
    assert mixer.has_identity_conv()
    with torch.no_grad():
        for part in (mixer.x_proj, mixer.x_proj_b):
            part.weight.zero_()
        mixer.D.fill_(1)
        mixer.D_b.fill_(1)
    u = torch.randn(2, 5, 20)
    x = u @ mixer.in_proj.weight[: mixer.inner].T
    if mixer.in_proj.bias is not None:
        x = x + mixer.in_proj.bias[: mixer.inner]
    expected = mixer.out_proj(nn.functional.silu(x))
    torch.testing.assert_close(mixer(u).output, expected, rtol=1e-5, atol=1e-5)


def test_mimic_without_a_place_for_the_gate_touches_convolutions_alone(
    randomise: Callable[..., None],
) -> None:
    mixer = make(randomise)
    before = mixer.in_proj.weight.clone()
    mixer.mimic_()
    assert mixer.has_identity_conv() and torch.equal(mixer.in_proj.weight, before)


def test_the_scan_gets_channels_last(randomise: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything else would be copied on a GPU."""
    seen: list[Tensor] = []

    def watched(*tensors: Tensor, **options: Any) -> Any:
        seen.extend([*tensors, options["z"]])
        return bidirectional_scan(*tensors, **options)

    monkeypatch.setattr(bidirectional, "bidirectional_scan", watched)
    make(randomise)(torch.randn(2, 7, 20))
    assert len(seen) == 11
    for tensor in seen:
        assert list(tensor.stride()) == sorted(tensor.stride(), reverse=True) and tensor.stride(-1) == 1
