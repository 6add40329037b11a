"""Experts: against a loop over tokens in float64, what routers' gradients say, capacity, precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from transmamba.errors import WrongValues
from transmamba.layers.capacity import most_of, within_capacity
from transmamba.layers.experts import Experts, ExpertsShape, SwitchLinear, route

WIDTH, NEURONS, COUNT = 8, 16, 4
KINDS: dict[str, dict[str, Any]] = {
    "switch": dict(),
    "switch, scaled": dict(scale=4.0),
    "two, normalised": dict(each=2, normalised=True, gated=True, act="silu"),
    "three, raw": dict(each=3, gated=True, act="relu"),
}


def made(kind: str, **options: Any) -> Experts:
    torch.manual_seed(0)
    shape = ExpertsShape(width=WIDTH, neurons=NEURONS, count=COUNT, **KINDS[kind])
    experts = Experts(shape, **options)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return experts


def tokens(rows: int = 3, length: int = 7) -> Tensor:
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(1))


def by_hand(experts: Experts, x: Tensor) -> Tensor:
    """Token after token, expert after expert, as the definition has it."""
    shape, own = experts.shape, {k: v.double() for k, v in experts.state_dict().items()}
    made = torch.zeros_like(x, dtype=torch.float64)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            token = x[b, t].double()
            scores = own["router.weight"] @ token
            likely = scores.exp() / scores.exp().sum()
            best = sorted(range(shape.count), key=lambda e: -float(likely[e]))[: shape.each]
            total = sum(float(likely[e]) for e in best) if shape.normalised else 1.0
            for e in best:
                into = own[f"experts.{experts.experts.up}"][e] @ token
                act = (lambda h: h * h.sigmoid()) if shape.act == "silu" else (lambda h: h.clamp_min(0))
                hidden = act(into[:NEURONS]) * into[NEURONS:] if shape.gated else act(into)
                made[b, t] += shape.scale * float(likely[e]) / total * (own["experts.down_proj"][e] @ hidden)
    return made


@pytest.mark.parametrize("implementation", ["transmamba", "grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_what_the_definition_says(kind: str, implementation: str) -> None:
    experts = made(kind)
    experts.implement(implementation)
    output, _ = experts(tokens())
    torch.testing.assert_close(output.double(), by_hand(experts, tokens()), rtol=1e-5, atol=1e-6)
    wide, _ = experts.double()(tokens().double())
    torch.testing.assert_close(wide, by_hand(experts, tokens()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loop(kind: str) -> None:
    """Of the grouped product in float32, with capacity, against the loop's in float64."""
    found = []
    for dtype in (torch.float32, torch.float64):
        experts = made(kind, capacity=1.0).to(dtype).train()
        x = tokens().to(dtype).requires_grad_()
        output, _ = experts(x)
        (output * tokens().flip(0).to(dtype)).sum().backward()
        found.append([x.grad, *(p.grad for p in experts.parameters())])
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


def test_the_raw_probability_s_router_has_a_gradient() -> None:
    """One whose weight is brought to a sum of 1 has none, and is refused."""
    for kind in ("switch", "two, normalised"):
        experts = made(kind)
        experts(tokens())[0].square().sum().backward()
        assert float(experts.router.weight.grad.abs().max()) > 1e-3, kind
    with pytest.raises(WrongValues, match="nothing trains the router"):
        ExpertsShape(width=WIDTH, neurons=NEURONS, count=COUNT, each=1, normalised=True)
    logits = torch.randn(2, 3, COUNT, requires_grad=True)
    top = logits.softmax(dim=-1).topk(1, dim=-1).values
    (top / top.sum(dim=-1, keepdim=True)).square().sum().backward()
    assert float(logits.grad.abs().max()) < 1e-6, "which is why"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_that_no_grouped_product_takes_go_one_by_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape = ExpertsShape(width=WIDTH, neurons=15, count=COUNT)
    experts = Experts(shape).to(dtype)
    output, routed = experts(tokens().to(dtype))
    each = torch.einsum("efd,bld->blef", experts.experts.up_proj, tokens().to(dtype)).relu()
    every = torch.einsum("edf,blef->bled", experts.experts.down_proj, each)
    wanted = every.gather(2, routed.chosen[..., None].expand(-1, -1, 1, WIDTH))[:, :, 0] * routed.weights
    torch.testing.assert_close(output.float(), wanted.float(), rtol=2e-2, atol=1e-3)
    output.float().square().sum().backward()
    assert all(p.grad is not None for p in experts.parameters())
    assert len(experts.state_dict()) == 3


@pytest.mark.parametrize("options", [dict(count=1), dict(count=4, each=5), dict(count=4, each=0)])
def test_what_cannot_be_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(WrongValues, match="write"):
        ExpertsShape(width=WIDTH, neurons=NEURONS, **options)


@pytest.mark.parametrize("capacity", [0.99, 0.0, -1.0, float("inf"), float("nan")])
def test_a_capacity_below_one_is_refused(capacity: float) -> None:
    with pytest.raises(WrongValues, match=r"capacity is .*; write a factor of at least 1"):
        made("switch", capacity=capacity)


# --- capacity ---


def kept_by_hand(chosen: Tensor, count: int, capacity: float, real: Tensor | None) -> Tensor:
    """Place after place, row after row, choice after choice: whoever comes while there is room."""
    rows, length, each = chosen.shape
    asked = rows * length * each if real is None else int(real.sum()) * each
    room = dict.fromkeys(range(count), max(1, int(capacity * asked / count)))
    kept = torch.zeros_like(chosen, dtype=torch.bool)
    for t in range(length):
        for b in range(rows):
            for k in range(each):
                expert = int(chosen[b, t, k])
                if (real is None or real[b, t]) and room[expert]:
                    room[expert] -= 1
                    kept[b, t, k] = True
    return kept


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("capacity", [1.0, 1.25, 4.0])
@pytest.mark.parametrize("padded", [False, True])
def test_capacity_is_first_come_by_place(each: int, capacity: float, padded: bool) -> None:
    seeded = torch.Generator().manual_seed(each)
    skewed = torch.tensor([4.0, 2.0, 1.0, 0.5]).expand(15, -1)
    chosen = torch.multinomial(skewed, each, generator=seeded).view(3, 5, each)
    real = torch.rand(3, 5, generator=seeded) < 0.7 if padded else None
    kept = within_capacity(chosen, COUNT, capacity, real)
    assert torch.equal(kept, kept_by_hand(chosen, COUNT, capacity, real))
    assert not kept.all() or capacity == 4.0


def test_what_is_dropped_depends_on_no_later_token() -> None:
    seeded = torch.Generator().manual_seed(0)
    chosen = torch.randint(0, COUNT, (3, 8, 1), generator=seeded)
    other = chosen.clone()
    other[:, 5:] = (other[:, 5:] + 1) % COUNT
    a, b = (within_capacity(each, COUNT, 1.0) for each in (chosen, other))
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.equal(a, b)


def test_tokens_are_dropped_in_training_alone() -> None:
    experts, x = made("switch", capacity=1.0), tokens().abs()
    with torch.no_grad():  # all choose the first
        experts.router.weight.copy_(torch.tensor([0.5, 0, 0, 0])[:, None].expand(-1, WIDTH))
    output, routed = experts.train()(x)
    dropped = ~routed.within[..., 0]
    assert int(routed.within.sum()) == int(21 / COUNT) and not output[dropped].any()
    output, routed = experts.eval()(x)
    assert routed.within.all()
    torch.testing.assert_close(output.double(), by_hand(experts, x), rtol=1e-5, atol=1e-6)


def test_padding_goes_nowhere() -> None:
    """Nor do tokens beside it change."""
    real = torch.tensor([[1, 1, 1, 1, 1, 0, 0]] * 3).bool()
    experts = made("switch", capacity=1.0).train()
    output, routed = experts(tokens(), real)
    short, alone = experts(tokens()[:, :5])
    assert not output[:, 5:].any() and not routed.within[:, 5:].any()
    torch.testing.assert_close(output[:, :5], short)
    assert torch.equal(routed.within[:, :5], alone.within)


def test_the_router_computes_in_float32_under_autocast() -> None:
    """Experts do not; their weights and gradients stay in float32."""
    experts = made("two, normalised")
    with torch.no_grad():  # what bfloat16 would not tell apart
        experts.router.weight.copy_(1 + 1e-3 * torch.randn(COUNT, WIDTH))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, routed = experts(tokens().bfloat16())
    assert output.dtype == torch.bfloat16 and routed.logits.dtype == torch.float32
    exact = tokens().bfloat16().double() @ experts.router.weight.double().mT
    torch.testing.assert_close(routed.logits.double(), exact, rtol=1e-5, atol=1e-5)
    output.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in experts.parameters())
    relative = (output.double() - by_hand(experts, tokens())).norm() / by_hand(experts, tokens()).norm()
    assert 1e-4 < float(relative) < 0.05


@pytest.mark.parametrize("neurons", [16, 15])
@pytest.mark.parametrize("implementation", ["transmamba", "eager"])
def test_the_loop_takes_rounded_weights_too(neurons: int, implementation: str) -> None:
    torch.manual_seed(0)
    experts = Experts(ExpertsShape(width=WIDTH, neurons=neurons, count=COUNT))
    experts.implement(implementation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = experts(tokens())
    single, _ = experts(tokens())
    assert output.dtype == torch.float32
    assert (output - single).norm() < 0.02 * single.norm()
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in experts.parameters())


def test_a_switched_projection_is_a_chosen_one() -> None:
    torch.manual_seed(0)
    switch, x = SwitchLinear(WIDTH, 5, COUNT), tokens()
    output, routed = switch(x)
    likely = (x @ switch.router.weight.mT).softmax(dim=-1)
    every = torch.einsum("eod,bld->bleo", switch.weight, x)
    best = likely.argmax(dim=-1)
    wanted = every.gather(2, best[..., None, None].expand(-1, -1, 1, 5))[:, :, 0]
    torch.testing.assert_close(output, wanted * likely.amax(dim=-1, keepdim=True))
    output.square().sum().backward()
    assert float(switch.router.weight.grad.abs().max()) > 0 and torch.equal(routed.chosen[..., 0], best)


def test_routing_without_capacity_keeps_all() -> None:
    shape = ExpertsShape(width=WIDTH, neurons=NEURONS, count=COUNT, each=2, normalised=True)
    routed = route(torch.randn(2, 5, COUNT), shape, None)
    assert routed.within.all() and torch.allclose(routed.weights.sum(dim=-1), torch.ones(2, 5))


def test_a_whole_share_is_not_rounded_down() -> None:
    """115 % of 20 tokens an expert are 23, of which float64 makes a little less; known to the host or not."""
    assert 1.15 * 100 / 5 < 23 == most_of(1.15, 100, 5)
    chosen = torch.zeros(10, 10, 1, dtype=torch.int64)
    for real in (None, torch.ones(10, 10, dtype=torch.bool)):
        assert int(within_capacity(chosen, 5, 1.15, real).sum()) == 23
