"""MLPs that become experts: the function is kept, stock classes hold them, and what cannot be is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import hybrid, llama, moved, quiet_texts, qwen3, relative, texts

from transmamba import UserError, adapt_teacher, convert, inspect, load_student, save_student
from transmamba.config.load import parse
from transmamba.core.tower import StudentSpec
from transmamba.errors import ConfigError, WrongValues
from transmamba.students.hybrid_lm.names import HybridLM
from transmamba.students.hybrid_lm.upcycled import Upcycled

SWITCH = Upcycled(count=4, routing="switch")


def double(model: Any) -> Any:
    with torch.no_grad():
        return model.double()(texts())


@pytest.mark.parametrize("attention", [(0, 1, 2), (1,), ()])
@pytest.mark.parametrize("each", [2, 3])
def test_topk_norm_begins_as_the_mlps_do(attention: tuple[int, ...], each: int) -> None:
    """In float64, so that what differs is the function: with all attention kept it is the teacher's own."""
    teacher = llama()
    experts = Upcycled(count=4, each=each)
    found = double(hybrid(teacher, *attention, experts=experts))
    assert relative(found, double(hybrid(teacher, *attention))) < 1e-12
    if len(attention) == 3:
        assert relative(found, double(teacher).logits) < 1e-6  # its rotary positions are float32's


def test_switch_begins_nearly_so_the_nearer_the_smaller_its_router() -> None:
    teacher = llama()
    wanted = double(hybrid(teacher, 1))
    errors = [
        relative(double(hybrid(teacher, 1, experts=dataclasses.replace(SWITCH, router_std=std))), wanted)
        for std in (1e-1, 1e-3, 1e-5)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] and errors[2] < 1e-3
    made = hybrid(teacher, 1, experts=SWITCH)
    assert made.layer(0).mlp.shape.scale == 4.0
    made.layer(0).mlp.shape = dataclasses.replace(made.layer(0).mlp.shape, scale=1.0)
    assert relative(double(made), wanted) > 0.05, "without the factor it is another function"


def test_every_second_layer_alone() -> None:
    made = hybrid(llama(), 1, experts=Upcycled(count=3, every=2))
    assert made.routers == {"decoder": {(1, ""): 3}} and not made.layer(0).routes
    assert relative(double(made), double(hybrid(llama(), 1))) < 1e-12


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_drop_upcycling_draws_a_share_of_neurons_anew(share: float) -> None:
    """A neuron as a whole, other ones in each expert, from the MLP's own mean and deviation; the rest
    stays."""
    teacher = llama(intermediate_size=96)
    made = hybrid(teacher, 1, experts=Upcycled(count=4, redrawn=share))
    again = hybrid(teacher, 1, experts=Upcycled(count=4, redrawn=share))
    name, mlp = "block_sparse_moe", teacher.model.layers[0].mlp
    experts = getattr(made.layer(0), name).experts
    gates, ups = experts.gate_up_proj.detach().split(96, dim=1)
    changed = (gates != mlp.gate_proj.weight).any(dim=2)
    assert changed.sum(dim=1).tolist() == [round(share * 96)] * 4
    assert torch.equal(changed, (ups != mlp.up_proj.weight).any(dim=2))
    assert torch.equal(changed, (experts.down_proj.detach() != mlp.down_proj.weight).any(dim=1))
    assert share == 1.0 or len({tuple(row.tolist()) for row in changed}) == 4
    for drawn, own in ((gates[changed], mlp.gate_proj.weight), (ups[changed], mlp.up_proj.weight)):
        assert float(drawn.std()) == pytest.approx(float(own.detach().std()), rel=0.1)
        assert float(drawn.mean()) == pytest.approx(float(own.detach().mean()), abs=0.02)
    assert not torch.equal(*(experts.down_proj.detach()[e] for e in (0, 1)))
    for (key, a), (_, b) in zip(made.state_dict().items(), again.state_dict().items(), strict=True):
        assert "router" in key or torch.equal(a, b), f"{key} is drawn otherwise"


def test_a_narrower_one_scales_as_its_mlp_would() -> None:
    teacher, options = llama(), dict(width=16, neurons=32)
    narrow = hybrid(teacher, 0, 1, 2, architecture="own", **options)
    found = hybrid(teacher, 0, 1, 2, architecture="own", experts=Upcycled(count=3), **options)
    assert relative(double(found), double(narrow)) < 1e-12


def test_its_report_has_every_expert() -> None:
    _, report = convert(
        adapt_teacher(llama()), "hybrid_lm", attention_layers=[0, 1, 2], experts=Upcycled(count=4)
    )
    fresh = {row.target for row in report.rows if row.kind == "fresh"}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in fresh} == {"router"} and not report.unused


@pytest.mark.parametrize(
    "kind, options, holds",
    [
        ("llama", dict(experts=Upcycled(count=4)), "GraniteMoeHybridForCausalLM"),
        ("llama", dict(experts=Upcycled(count=4, redrawn=0.5)), "GraniteMoeHybridForCausalLM"),
        ("llama", dict(experts=SWITCH), "HybridForCausalLM"),
        ("qwen3", dict(experts=Upcycled(count=4)), "HybridForCausalLM"),
    ],
)
def test_a_class_holds_it_and_generates_with_and_without_cache(
    kind: str, options: dict[str, Any], holds: str, tmp_path: Path
) -> None:
    """Its folder, loaded by transformers strictly: no tensor missing or left over, and equal logits."""
    teacher = llama() if kind == "llama" else qwen3()
    made = moved(hybrid(teacher, 1, **options)).eval()
    save_student(made, tmp_path)
    if holds.startswith("Granite"):
        from transformers import AutoModelForCausalLM

        stock, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    else:
        stock = load_student(tmp_path).stock()
    assert type(stock).__name__ == holds
    with torch.no_grad():
        assert relative(stock.eval()(texts()).logits, made(texts())) < 1e-5
        assert torch.equal(load_student(tmp_path)(texts()), made(texts()))
        quiet_texts(stock)
        options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
        given = texts()[:, :9]
        mask = torch.ones_like(given)
        written = [
            stock.generate(given, attention_mask=mask, use_cache=use, **options) for use in (True, False)
        ]
    assert torch.equal(*written)
    experts = inspect(tmp_path).towers["decoder"]["sublayers"][0]["of"][1]
    assert (experts["kind"], experts["experts"]) == ("experts", 4)


def test_without_attention_it_is_of_our_own_class() -> None:
    """transformers' would have a whole layer of zero experts beside it, for its cache's sake."""
    assert type(hybrid(llama(), experts=Upcycled(count=4)).stock()).__name__ == "HybridForCausalLM"


def test_a_teacher_without_mlps_is_refused_in_a_line() -> None:
    teacher = adapt_teacher(llama())
    tower = teacher.view.towers["decoder"]
    alone = dataclasses.replace(tower, sublayers=tower.sublayers[::2])
    view = dataclasses.replace(teacher.view, towers={"decoder": alone})
    with pytest.raises(
        UserError, match="made of a teacher's MLPs, and this one has none, but attention"
    ) as said:
        HybridLM(experts=Upcycled()).build(StudentSpec(view=view))
    assert "\n" not in str(said.value)
    with pytest.raises(UserError, match="have no biases, which the teacher's MLPs have"):
        hybrid(llama(mlp_bias=True), 1, experts=Upcycled())


@pytest.mark.parametrize(
    "options, why",
    [
        (dict(each=1), "each is 1, with a weight that is brought to a sum of 1"),
        (dict(count=4, each=5), "each is 5; write 2 to 4"),
        (dict(count=4, each=0), "each is 0; write 2 to 4"),
        (dict(count=1), "count is 1; write at least 2"),
        (dict(routing="switch", each=2), "switch has 1 expert a token"),
        (dict(capacity=0.9), "capacity is 0.9; write a factor of at least 1"),
        (dict(redrawn=1.5), "redrawn is 1.5"),
        (dict(router_std=0.0), "router_std is 0.0"),
        (dict(every=0), "every is 0"),
        (dict(router_std=float("inf")), "router_std is inf"),
        (dict(count=4, capacity=2.0), "capacity is 2.0, at which no expert is ever full: .* less than 2,"),
        (dict(count=4, routing="switch", capacity=4.0), "no expert is ever full: .* write less than 4,"),
        (dict(count=2, capacity=1.0), "capacity is 1.0, but each token has all 2 experts; leave it out"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(WrongValues, match=why):
        Upcycled(**options)


def test_a_share_of_no_neuron_is_refused() -> None:
    teacher = llama(intermediate_size=96)
    with pytest.raises(UserError, match=r"redrawn is 0.005, of 96 neurons none; write at least 0\.01, or 0"):
        hybrid(teacher, 1, experts=Upcycled(count=4, redrawn=0.005))
    assert hybrid(teacher, 1, experts=Upcycled(count=4, redrawn=0.0104)).redrawn == 0.0104


def test_experts_in_no_layer_are_refused_with_the_depth() -> None:
    with pytest.raises(
        UserError, match=r"every is 4, but the student has 3 layers.*; write 3 at most"
    ) as told:
        hybrid(llama(), 1, experts=Upcycled(every=4))
    assert "\n" not in str(told.value)
    assert hybrid(llama(), 1, experts=Upcycled(every=3)).routers == {"decoder": {(2, ""): 8}}


def test_a_recipe_says_them() -> None:
    found = parse(HybridLM, {"experts": {"count": 4, "routing": "switch"}}, "student")
    assert found.experts == SWITCH
    for wrong, why in (
        ({"experts": {"counts": 4}}, "counts"),
        ({"architecture": "bamba", "experts": {}}, "bamba has no place for"),
        (
            {"architecture": "granite", "experts": {"routing": "switch"}},
            "granite has topk_norm in every layer",
        ),
    ):
        with pytest.raises(ConfigError, match=why):
            parse(HybridLM, wrong, "student")


def test_capacity_is_for_training_alone() -> None:
    made = hybrid(llama(), 1, experts=Upcycled(count=4, capacity=1.0))
    wanted = made.eval()(texts())
    assert relative(made.train()(texts()), wanted) > 1e-3
    assert torch.equal(made.eval()(texts()), wanted)
