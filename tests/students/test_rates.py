"""Groups of parameters that are trained faster or slower than the rest of a stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hybrids import hybrid, llama, texts

from transmamba import UserError, adapt_teacher
from transmamba.config.registry import LOSSES
from transmamba.core.batch import Batch
from transmamba.distillation.distiller import Distiller
from transmamba.errors import WrongValues
from transmamba.training.optimizer import check_stage, make_optimizer, set_pace, set_trainable
from transmamba.training.stage import Stage


def distilled(loss: str = "kl", **options: Any) -> Distiller:
    model = llama()
    return Distiller(hybrid(model, 1, **options), adapt_teacher(model), [loss])


def stage(loss: str = "kl", **options: Any) -> Stage:
    return Stage(losses=(LOSSES[loss](),), **({"steps": 4, "warmup": 0.0, "weight_decay": 0.0} | options))


def moves(model: Distiller, plan: Stage) -> dict[str, float]:
    """How far each parameter's largest number goes in the first step, in which AdamW moves it by its rate."""
    set_trainable(model, plan)
    before = {name: p.detach().clone() for name, p in model.student.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(model, plan)
    set_pace(optimizer, model.student, plan, 0, 4)
    text = texts(2, 30)
    counts = {"samples": len(text), "tokens": text.numel()}
    model.loss(Batch({"text": text}, {}, torch.arange(len(text)), counts))[0].backward()
    optimizer.step()
    after = dict(model.student.named_parameters())
    return {name: float((after[name].detach() - p).abs().max()) for name, p in before.items()}


def test_a_group_moves_by_its_own_rate() -> None:
    found = moves(distilled(window=5, sinks=2), stage(lr=1e-3, rates={"far": 3.0, "attention": 0.5}))
    for name, moved in found.items():
        wanted = 3e-3 if ".far." in name else 5e-4 if "layers.1.self_attn" in name else 1e-3
        assert moved == pytest.approx(wanted, rel=0.02), name
    assert any(".far." in name for name in found) and any("layers.1.self_attn" in name for name in found)


def test_what_lies_beyond_a_window_is_a_group_of_its_own() -> None:
    found = moves(distilled("mixer", window=5, sinks=2), stage("mixer", trainable="far", lr=2e-3))
    assert all(".self_attn.far." in name for name in found) and len({n.split(".")[2] for n in found}) == 2
    assert all(moved == pytest.approx(2e-3, rel=0.02) for moved in found.values())
    with pytest.raises(UserError, match="stage distill: trainable 'far' is no group of this student"):
        set_trainable(distilled(), stage(trainable="far"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rates={"mixer": 2.0}), "stage distill: rates.mixer is no group of this student; did you mean"),
        (dict(rates={"mixers": 2.0}, trainable="mlp"), "rates.mixers is 2.0, but the stage trains noth"),
        (dict(rates={"mixers": 2.0, "far": 3.0}), "rates names mixers and far, and .* is of both; name one"),
    ],
)
def test_rates_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_stage(distilled(window=5, sinks=2), stage(**options))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_is_a_number_above_0(rate: float) -> None:
    with pytest.raises(WrongValues, match=r"rates\.far is .*; write a number above 0, what lr"):
        stage(rates={"far": rate})
