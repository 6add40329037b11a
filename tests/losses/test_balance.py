"""Balance of experts and the z-loss: against the definition in float64, over micro-batches, over layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from transmamba import Distiller, UserError
from transmamba.core.batch import Batch
from transmamba.core.layout import Sequence
from transmamba.core.output import Output, Stream
from transmamba.core.tower import StudentSpec
from transmamba.distillation.signals import Signals
from transmamba.errors import WrongValues
from transmamba.layers.experts import Experts, ExpertsShape
from transmamba.losses.balance import Balance
from transmamba.losses.router_z import RouterZ
from transmamba.students.moe_mamba import MoeMamba

COUNT = 4


def student(**options: Any) -> Any:
    torch.manual_seed(0)
    made = MoeMamba(**{"experts": COUNT, "blocks": 2, "width": 16, "capacity": None, **options}).build(
        StudentSpec()
    )
    with torch.no_grad():  # so that routers are of several minds
        for name, parameter in made.named_parameters():
            if "router" in name:
                parameter.mul_(10)
    return made.train()


def batch(rows: int = 4, length: int = 10, padded: bool = False) -> Batch:
    text = torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(2))
    inputs = {"text": text}
    if padded:
        inputs["text_mask"] = torch.arange(length) >= torch.arange(rows)[:, None]
    real = rows * length if not padded else int(inputs["text_mask"].sum())
    counts = {"samples": rows, "tokens": real, "answers": real}
    return Batch(inputs, {"tokens": text}, torch.arange(rows), counts)


def part(whole: Batch, start: int, stop: int) -> Batch:
    rows = slice(start, stop)
    inputs = {name: x[rows] for name, x in whole.inputs.items()}
    real = int(inputs.get("text_mask", torch.ones_like(inputs["text"])).sum())
    counts = {"samples": stop - start, "tokens": real, "answers": real}
    targets = {name: x[rows] for name, x in whole.targets.items()}
    return Batch(inputs, targets, whole.index[rows], counts)


def routers(model: Any, whole: Batch) -> list[Tensor]:
    """Probabilities (N, E) of real tokens, by a hook on each router: not by what the loss reads."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda m, given, made: found.append(made))
        for name, module in model.named_modules()
        if name.endswith(".router")
    ]
    with torch.no_grad():
        model.run(whole.inputs)
    for hook in hooks:
        hook.remove()
    mask = whole.inputs.get("text_mask")
    said = [x.flatten(0, 1) if mask is None else x[mask] for x in found]
    return [x.double().softmax(dim=-1) for x in said]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("variant", ["sequential", "parallel", "inner"])
def test_it_is_the_mean_over_routers_of_shares_times_probabilities(variant: str, padded: bool) -> None:
    model, whole = student(variant=variant), batch(padded=padded)
    distiller = Distiller(model, None, [Balance(), RouterZ()])
    loss: Any = distiller.losses["balance"]
    likely = routers(model, whole)
    assert len(likely) == len(loss.places) == (4 if variant == "inner" else 2)
    tokens = whole.counts["tokens"]
    first = distiller(whole)["balance"]
    assert float(first.sum.detach()) / tokens == pytest.approx(1.0, rel=1e-5), (
        "shares are even before the first step"
    )
    shares = [torch.bincount(p.argmax(dim=-1), minlength=COUNT) / tokens for p in likely]
    torch.testing.assert_close(
        first.parts[:, :COUNT].double() / tokens, torch.stack(shares).double(), atol=1e-6, rtol=0
    )
    entropy = torch.stack([-(p * p.log()).sum(dim=-1).mean() for p in likely])
    torch.testing.assert_close(first.parts[:, -1].double() / tokens, entropy, rtol=1e-5, atol=1e-6)
    distiller.observe({"balance": first.parts / tokens})
    wanted = torch.stack([COUNT * (f * p.mean(dim=0)).sum() for f, p in zip(shares, likely, strict=True)])
    again = distiller(whole)
    assert float(again["balance"].sum.detach()) / tokens == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert float(wanted.mean()) > 1.01


def test_the_z_loss_is_of_logits() -> None:
    model, whole = student(), batch()
    seen: list[Tensor] = []
    for k in range(2):
        model.layer(k).mlp.router.register_forward_hook(lambda m, given, made: seen.append(made.double()))
    found = Distiller(model, None, [RouterZ()])(whole)["router_z"].sum.detach()
    wanted = sum(float(x.detach().exp().sum(dim=-1).log().square().sum()) for x in seen) / 2
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_layers_do_not_cancel() -> None:
    """As in one loss over the sums of all layers, where one layer's crowd fills what the other leaves."""
    loss: Any = Distiller(student(), None, [Balance()]).losses["balance"]
    loss.observe(torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0]]))
    likely = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]])
    kept = torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, dtype=torch.bool)
    said = {k: dict(router=likely[k].log()[None, None], chosen=kept[0], within=kept[1]) for k in range(2)}
    output = Output({"decoder": Stream(Sequence(), mixers=said)})
    found = loss(Signals(output, None, batch(1, 1))).sum
    pooled = COUNT * (loss.shares().mean(dim=0) * likely.mean(dim=0)).sum()
    assert float(found) == pytest.approx(2.8) and float(pooled) == pytest.approx(1.6)


@pytest.mark.parametrize("cuts", [(0, 4), (0, 1, 2, 3, 4), (0, 3, 4)])
def test_micro_batches_change_nothing(cuts: tuple[int, ...]) -> None:
    """Value, gradients and what is remembered, for the shares come from earlier steps."""
    found = []
    for bounds in ((0, 4), cuts):
        model, whole = student(), batch(padded=True)
        distiller = Distiller(model, None, ["cross_entropy", Balance(weight=1.0), RouterZ()])
        loss: Any = distiller.losses["balance"]
        loss.observe(torch.tensor([[0.7, 0.1, 0.1, 0.1, 0, 0], [0.0, 0.2, 0.3, 0.5, 0, 0]]))
        parts, total = torch.zeros(2, COUNT + 2), 0.0
        for start, stop in pairwise(bounds):
            terms = distiller(part(whole, start, stop))
            value = terms["balance"].sum + terms["router_z"].sum
            value.backward()
            total, parts = total + float(value.detach()), parts + terms["balance"].parts
        found.append((total, parts, [p.grad.clone() for n, p in model.named_parameters() if "router" in n]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1])
    for a, b in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_capacity_is_of_a_micro_batch() -> None:
    """The exception, which docs/method.md says: what is dropped may change with the division."""
    model, whole = student(capacity=1.0), batch(8, 12)
    distiller = Distiller(model, None, [Balance()])
    once = distiller(whole)["balance"].parts[:, -2].sum()
    twice = sum(distiller(part(whole, k, k + 1))["balance"].parts[:, -2].sum() for k in range(8))
    assert float(once) > 0 and float(once) != float(twice)


def test_what_is_dropped_is_logged() -> None:
    whole = batch(4, 16)
    for capacity, dropped in ((1.0, True), (3.9, False), (None, False)):
        distiller: Any = Distiller(student(capacity=capacity), None, [Balance(weight=0.0)])
        parts = distiller(whole)["balance"].parts
        assert bool(parts[:, -2].sum() > 0) == dropped
    loss = distiller.losses["balance"]
    assert loss.part_names()[:6] == ["0/load_0", "0/load_1", "0/load_2", "0/load_3", "0/dropped", "0/entropy"]
    assert len(loss.part_names()) == parts.numel() and loss.logged == "routing"


def test_the_shares_are_kept_in_a_checkpoint() -> None:
    distiller = Distiller(student(), None, [Balance()])
    assert "losses.balance.running" in distiller.state_dict()


def loads(weight: float, momentum: float = 0.5) -> list[float]:
    """Of four experts, by the end, that learn four maps of tokens of four kinds, after nearly all have gone
    to the first."""
    torch.manual_seed(0)
    kinds, maps = torch.randn(COUNT, 8), torch.randn(COUNT, 8, 8) / 3
    experts = Experts(ExpertsShape(width=8, neurons=16, count=COUNT))
    with torch.no_grad():
        experts.router.weight.copy_(0.1 * torch.randn(COUNT, 8))
        experts.router.weight[0] += 2 * kinds.mean(dim=0) / kinds.mean(dim=0).square().sum()
    routed_by = {"decoder": {(0, ""): COUNT}}
    balance = Balance(weight=weight, momentum=momentum).build_routed(routed_by)
    optimizer = torch.optim.Adam(experts.parameters(), lr=1e-2)
    for _ in range(200):
        which = torch.randint(0, COUNT, (1, 64))
        x = kinds[which] + 0.3 * torch.randn(1, 64, 8)
        made, routed = experts(x)
        error = (made - torch.einsum("blij,blj->bli", maps[which], x)).square().mean()
        output = Output({"decoder": Stream(Sequence(), mixers={0: routed.parts()})})
        term = balance(Signals(output, None, batch(1, 64)))
        optimizer.zero_grad()
        (error + weight * term.sum / 64).backward()
        optimizer.step()
        balance.observe(term.parts / 64)
    found: list[float] = (term.parts[0, :COUNT] / 64).tolist()
    return found


def test_experts_starve_without_it_and_are_used_with_it() -> None:
    assert min(loads(0.0)) < 0.02
    assert min(loads(0.1)) > 0.1


@pytest.mark.parametrize("config", [Balance(), RouterZ()])
def test_a_student_without_experts_is_refused_in_a_line(config: Any) -> None:
    for experts in (0, 1):
        with pytest.raises(UserError, match="this student has no experts; leave it out") as said:
            Distiller(student(experts=experts), None, [config])
        assert "\n" not in str(said.value)
    with pytest.raises(UserError, match="has no experts"):
        Distiller(torch.nn.Linear(2, 2), None, [config])


def test_wrong_values_are_refused() -> None:
    with pytest.raises(WrongValues, match="momentum is 1"):
        Balance(momentum=1.0)
    with pytest.raises(WrongValues, match="weight is -1"):
        RouterZ(weight=-1.0)
