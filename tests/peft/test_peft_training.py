"""What training needs of an adapter: groups for an optimizer, and sparse dimension tuning's warm-up."""

from __future__ import annotations

from typing import Any

import peft_models as tiny
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from transmamba.errors import UserError
from transmamba.peft.sdt import choose


def test_methods_have_their_own_rates_and_decays() -> None:
    methods = ["lora_x", {"name": "a", "rate": 0.5}, "bias", {"name": "additional_scan", "decay": 3.0}]
    adapted = tiny.adapted("mamba", methods, modules_to_save=["norm_f"])
    names = {id(p): name for name, p in adapted.named_parameters() if p.requires_grad}
    groups = adapted.parameter_groups(rate=0.1, weight_decay=0.01)
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == set(names.values())
    wanted = {
        "lora_x_down": (0.1, 0.01),
        "transmamba_adapters.default.a": (0.05, 0.1),
        "default.bias": (0.1, 1.0),
        "additional_scan_a": (0.1, 0.0),
        "additional_scan_b": (0.1, 0.03),
        "norm_f.modules_to_save.default.weight": (0.1, 0.01),
    }
    for end, (rate, decay) in wanted.items():
        mine = [pair for name, pair in found.items() if name.endswith(end)]
        assert mine and all(pair == pytest.approx((rate, decay)) for pair in mine), end


def test_a_warm_up_chooses_what_training_all_of_a_log_moves_most() -> None:
    """Against the same steps on a plain model whose A_log alone is trained."""
    options = dict(name="sdt", channels=0.1, states=0.5)
    adapted, steps = tiny.adapted("mamba", [options], trained=False), range(4)
    batches = [tiny.words(seed=step) for step in steps]

    def losses_of(model: Any) -> Any:
        return [lambda ids=ids: model(ids, labels=ids, use_cache=False).loss for ids in batches]

    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items() if "sdt" not in name}
    choose(adapted, losses_of(adapted), rate=0.05)
    assert all(torch.equal(tensor, adapted.state_dict()[name]) for name, tensor in before.items())
    plain = tiny.base("mamba")
    rates = [layer.mixer.A_log.requires_grad_() for layer in plain.backbone.layers]
    start = [rate.detach().clone() for rate in rates]
    optimizer = torch.optim.AdamW(rates, lr=0.05, weight_decay=0.0)
    for loss in losses_of(plain):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    for layer, rate, old in zip(adapted.get_base_model().backbone.layers, rates, start, strict=True):
        moved = (rate.detach() - old) ** 2
        best = sorted(moved.sum(1).argsort(descending=True)[:3].tolist())
        tensors = layer.mixer.transmamba_adapters["default"]
        assert tensors.sdt_rows.tolist() == best == tensors.sdt_columns.tolist()
        states = [sorted(moved[channel].argsort(descending=True)[:2].tolist()) for channel in best]
        assert tensors.sdt_states.tolist() == states


def test_what_was_chosen_alone_is_trained_and_merged() -> None:
    adapted = tiny.adapted("mamba", [dict(name="sdt", channels=0.1, states=0.5)])
    old = {n: p.clone() for n, p in adapted.named_parameters() if "base_layer" in n}
    tensors = adapted.get_base_model().backbone.layers[0].mixer.transmamba_adapters["default"]
    adapted.merge_adapter()
    layer = adapted.get_base_model().backbone.layers[0].mixer.base_layer
    prefix = "base_model.model.backbone.layers.0.mixer.base_layer."
    moved = layer.A_log != old[f"{prefix}A_log"]
    assert (
        int(moved.sum()) == 3 * 2 and moved.any(1).nonzero().flatten().tolist() == tensors.sdt_rows.tolist()
    )
    columns = (layer.x_proj.weight != old[f"{prefix}x_proj.weight"]).nonzero().unbind(1)
    assert columns[1].unique().tolist() == tensors.sdt_columns.tolist() and int(columns[0].min()) == 3


@pytest.mark.parametrize("model", ["mamba2", "bamba"])
def test_a_warm_up_of_mamba2_chooses_heads_and_columns(model: str) -> None:
    adapted, ids = tiny.adapted(model, [dict(name="sdt", channels=0.25)], trained=False), tiny.words()
    choose(adapted, [lambda: adapted(ids, labels=ids, use_cache=False).loss] * 2)
    layers = [m for m in adapted.modules() if hasattr(m, "transmamba_adapters")]
    for layer in layers:
        tensors = layer.transmamba_adapters["default"]
        assert len(tensors.sdt_rows) == 1 and len(set(tensors.sdt_columns.tolist())) == 4


def test_a_warm_up_without_anything_to_choose() -> None:
    with pytest.raises(UserError, match="no active adapter has the method 'sdt'"):
        choose(tiny.adapted("mamba", ["a"]), [])
    with pytest.raises(UserError, match="no losses"):
        choose(tiny.adapted("mamba", ["sdt"], trained=False), [])


@pytest.mark.parametrize("gradients", ["of the adapter alone", "of the embeddings, too"])
def test_a_warm_up_is_refused_under_reentrant_checkpoints(gradients: str) -> None:
    adapted, ids = tiny.adapted("mamba", ["sdt"], trained=False).train(), tiny.words()
    if gradients == "of the embeddings, too":
        adapted.get_base_model().enable_input_require_grads()
    losses = [lambda: adapted(ids, labels=ids, use_cache=False).loss]
    adapted.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(UserError, match="turn gradient checkpointing off, or give it use_reentrant=False"):
        choose(adapted, losses)
    assert not any(layer.mixer.trial for layer in adapted.get_base_model().backbone.layers)
    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    choose(adapted, losses)


def test_a_warm_up_is_refused_where_one_mixer_alone_is_under_a_reentrant_checkpoint() -> None:
    adapted, ids = tiny.adapted("mamba", ["sdt"], trained=False), tiny.words()
    last = adapted.get_base_model().backbone.layers[1]
    own = last.forward
    last.forward = lambda x, **options: checkpoint(lambda y: own(y, **options), x, use_reentrant=True)
    with pytest.raises(UserError, match="use_reentrant=False"):
        choose(adapted, [lambda: adapted(ids, labels=ids, use_cache=False).loss])


def test_a_warm_up_leaves_trained_deltas_where_they_are() -> None:
    adapted, ids = tiny.adapted("mamba", ["sdt"]), tiny.words()
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    with pytest.raises(UserError, match="the sdt of adapter 'default' is trained already"):
        choose(adapted, [lambda: adapted(ids, labels=ids, use_cache=False).loss])
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())
