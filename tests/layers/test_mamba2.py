"""BidirectionalSSD against its definition: a dense sum over all pairs of tokens, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transmamba_kernels import bidirectional_ssd

from transmamba.layers import mamba2
from transmamba.layers.bidirectional import NEUTRAL_GATE
from transmamba.layers.mamba2 import BidirectionalSSD, SSDAttention

P = dict[str, Tensor]


def dense(u: Tensor, p: P, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(merged, forward, backward) of u (B, L, D): y_t = sum_s (C_t . B_s) decay(t, s) dt_s x_s, gated.

    A branch counts its own side twice and the token itself once, so that the two branches' mean is the sum
    over all tokens.
    """
    batch, length, width = u.shape
    size = width // heads
    mixed = u @ p["qkv.weight"].T + p["qkv.bias"]
    kernel = p["conv1d.weight"][:, 0]
    centre = kernel.shape[1] // 2
    convolved = torch.zeros_like(mixed)
    for t in range(length):
        total = p["conv1d.bias"].expand(batch, -1)
        for j in range(kernel.shape[1]):
            if 0 <= t + j - centre < length:
                total = total + kernel[:, j] * mixed[:, t + j - centre]
        convolved[:, t] = total
    C, B, x = (part.reshape(batch, length, heads, size) for part in convolved.chunk(3, dim=-1))
    C = C / math.sqrt(size)
    raw = u @ p["dt_proj.weight"].T + p["dt_proj.bias"]
    dt = torch.log1p(torch.exp(raw))
    rates = torch.exp(p["A_log"]), torch.exp(p["A_b_log"])
    merged, ahead, back = (torch.zeros_like(x) for _ in range(3))
    for t in range(length):
        for s in range(length):
            match = (C[:, t] * B[:, s]).sum(-1)
            between = dt[:, s + 1 : t + 1] if s <= t else dt[:, t:s]
            decay = torch.exp(-between.sum(1) * (rates[0] if s <= t else rates[1]))
            part = (match * decay * dt[:, s])[..., None] * x[:, s]
            merged[:, t] += part
            if s == t:
                ahead[:, t] += part
                back[:, t] += part
            else:
                (ahead if s < t else back)[:, t] += 2 * part
    gate = u @ p["gate.weight"].T + p["gate.bias"]
    gate = gate * torch.sigmoid(gate)
    return tuple(  # type: ignore[return-value]
        (y.reshape(batch, length, width) * gate) @ p["proj.weight"].T + p["proj.bias"]
        for y in (merged, ahead, back)
    )


def make(randomise: Callable[..., None]) -> BidirectionalSSD:
    mixer = BidirectionalSSD(12, 3, length=6)
    randomise(mixer, seed=6)
    return mixer


def test_output_branches_and_gradients_equal_the_dense_sum(randomise: Callable[..., None]) -> None:
    mixer = make(randomise)
    u = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(7))
    truth = {
        name: parameter.detach().double().requires_grad_() for name, parameter in mixer.named_parameters()
    }
    u64, u32 = u.double().requires_grad_(), u.clone().requires_grad_()
    expected = dense(u64, truth, 3)
    mixed = mixer(u32, branches=True)
    assert mixed.half is not None
    spread = mixed.half @ mixer.proj.weight.T
    found = (mixed.output, mixed.output + spread, mixed.output - spread)
    for mine, wanted in zip(found, expected, strict=True):
        assert wanted.std() > 0.1, "a test of nothing"
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-4, atol=1e-5)
    weights = [torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    torch.stack([(y * w).sum() for y, w in zip(found, weights, strict=True)]).sum().backward()
    torch.stack([(y * w).sum() for y, w in zip(expected, weights, strict=True)]).sum().backward()
    pairs = {name: (parameter.grad, truth[name].grad) for name, parameter in mixer.named_parameters()}
    for name, (grad, truly) in {**pairs, "u": (u32.grad, u64.grad)}.items():
        assert grad is not None and truly is not None and truly.norm() > 0, name
        assert (grad.double() - truly).norm() <= 1e-4 * truly.norm(), name


def test_token_subset_and_plain_pass_agree(randomise: Callable[..., None]) -> None:
    mixer = make(randomise)
    u = torch.randn(2, 6, 12)
    alone, both = mixer(u), mixer(u, branches=True)
    torch.testing.assert_close(alone.output, both.output)
    positions = torch.tensor([4, 1])
    torch.testing.assert_close(mixer(u, branches=True, tokens=positions).half, both.half[:, positions])
    assert both.parts["B"].shape == both.parts["C"].shape == (2, 6, 12)


def test_starts_neutral() -> None:
    mixer = BidirectionalSSD(12, 3, length=17)
    u = torch.randn(2, 17, 12)
    delta = torch.nn.functional.softplus(mixer.dt_proj(u))
    torch.testing.assert_close(delta, torch.full_like(delta, 1 / 17))
    gate = torch.nn.functional.silu(mixer.gate(u))
    torch.testing.assert_close(gate, torch.ones_like(gate))
    mixed = mixer.qkv(u)
    torch.testing.assert_close(mixer.conv1d(mixed.mT).mT, mixed)
    # rates of 1/4, 1 and 4 an image, for both directions
    for log in (mixer.A_log, mixer.A_b_log):
        torch.testing.assert_close(log.exp(), torch.tensor([0.25, 1.0, 4.0]))
    assert pytest.approx(NEUTRAL_GATE) == mixer.gate.bias[0].item()


def test_ssd_attention_has_attention_s_call(randomise: Callable[..., None]) -> None:
    mixer = SSDAttention(12, 3, length=6)
    randomise(mixer)
    u = torch.randn(2, 6, 12)
    assert torch.equal(mixer(u), mixer.mix(u).output)
    with pytest.raises(ValueError, match="no attention mask"):
        mixer(u, attn_mask=torch.ones(6, 6))
    with pytest.raises(ValueError, match="no attention mask"):
        mixer(u, is_causal=True)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"dim 10 .* num_heads 4"):
        BidirectionalSSD(10, 4, length=3)


@pytest.mark.parametrize("taps", [1, 3, 5])
def test_the_convolution_is_the_module_s(taps: int, randomise: Callable[..., None]) -> None:
    mixer = BidirectionalSSD(12, 3, length=6, conv_kernel=taps)
    randomise(mixer, seed=7)
    x = torch.randn(2, 6, 36, generator=torch.Generator().manual_seed(8))
    torch.testing.assert_close(mixer._convolve(x), mixer.conv1d(x.mT).mT)


def test_the_scan_gets_channels_last(randomise: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything else would be copied on a GPU."""
    seen: dict[str, Tensor] = {}

    def watched(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **rest: Any) -> Any:
        seen.update(x=x, delta=delta, B=B, C=C)
        return bidirectional_ssd(x, delta, A, B, C, **rest)

    monkeypatch.setattr(mamba2, "bidirectional_ssd", watched)
    make(randomise)(torch.randn(2, 6, 12))
    for name, tensor in seen.items():
        assert tensor.stride(-1) == 1, name
        assert list(tensor.stride()) == sorted(tensor.stride(), reverse=True), name
