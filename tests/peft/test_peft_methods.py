"""Every method on every kind of model: identity, gradients, generation, padding, merging."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft_models as tiny
import pytest
import torch
from transmamba_kernels import compat, patch_transformers

PAIRS = [(model, method) for model in tiny.MODELS for method in tiny.METHODS]
ALL = [(model, method) for model in tiny.MODELS for method in [*tiny.METHODS, "all"]]


def methods_of(method: str) -> list[str]:
    return tiny.METHODS if method == "all" else [method]


@pytest.mark.parametrize("model, method", PAIRS)
def test_a_fresh_adapter_changes_nothing(model: str, method: str) -> None:
    ids = tiny.words()
    with torch.no_grad():
        wanted = tiny.base(model)(ids).logits
        fresh = tiny.adapted(model, [method], trained=False)(ids).logits
        trained = tiny.adapted(model, [method])(ids).logits
    assert (fresh - wanted).abs().max() <= 1e-6 * wanted.abs().max() or method in tiny.RANDOM
    assert (trained - wanted).abs().max() > 1e-4


@contextlib.contextmanager
def one_call(monkeypatch: Any) -> Iterator[list[str]]:
    """mamba_ssm cannot be built here, so that its one-call training functions are stood in for by ours of the
    same names and arguments, which read nothing but the raw weights that transformers hands them. Gives the
    names of those that were called."""
    from transformers.models.bamba import modeling_bamba
    from transformers.models.mamba import modeling_mamba
    from transformers.models.mamba2 import modeling_mamba2

    called = []

    def noted(function: Any) -> Any:
        taken = inspect.signature(function).parameters

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            called.append(function.__name__)
            return function(*args, **{name: value for name, value in kwargs.items() if name in taken})

        return stand_in

    with monkeypatch.context() as patch:
        patch.setattr(modeling_mamba, "mamba_inner_fn", noted(compat.mamba_inner_fn))
        for module in (modeling_mamba2, modeling_bamba):
            name = next(n for n in vars(module) if n.endswith("_split_conv1d_scan_combined"))
            patch.setattr(module, name, noted(compat.mamba_split_conv1d_scan_combined))
        yield called


@pytest.mark.parametrize("path", ["transformers", "ours", "one call"])
@pytest.mark.parametrize("methods", [tiny.MERGED, tiny.METHODS], ids=["weights", "all"])
@pytest.mark.parametrize("model", tiny.MODELS)
def test_every_trained_tensor_has_a_gradient(model: str, methods: Any, path: str, monkeypatch: Any) -> None:
    ids, adapted = tiny.words(), tiny.adapted(model, methods)
    with torch.no_grad():
        wanted = adapted(ids).logits
    adapted.train()
    paths: dict[str, Any] = {"ours": patch_transformers, "one call": lambda: one_call(monkeypatch)}
    with paths.get(path, contextlib.nullcontext)() as called:
        output = adapted(ids, labels=ids, use_cache=False)
        output.loss.backward()
    if path == "one call":  # which an adapter that works inside has to go around
        assert bool(called) == (methods is tiny.MERGED)
    torch.testing.assert_close(output.logits, wanted, atol=1e-4, rtol=0)
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("transmamba_adapters" in name), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


@pytest.mark.parametrize("model, method", ALL)
def test_generation_with_a_cache_is_generation_without(model: str, method: str) -> None:
    adapted, ids = tiny.adapted(model, methods_of(method)), tiny.words()
    options = dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)
    made = [adapted.generate(ids, use_cache=cached, **options) for cached in (True, False)]
    torch.testing.assert_close(torch.stack(made[0].logits), torch.stack(made[1].logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("model", ["mamba", "mamba2"])
def test_a_text_in_parts_is_the_text_at_once(model: str, gradients: bool) -> None:
    """Several tokens, several more, then one: each call goes on from the state that the last one left, as
    transformers' own Mamba does with one token alone."""
    adapted, ids = tiny.adapted(model, ["lora_x", *tiny.INSIDE]), tiny.words()
    with torch.set_grad_enabled(gradients):
        wanted, cache, parts = adapted(ids, use_cache=False).logits, None, []
        for part in ids.split([3, 3, 1], dim=1):
            output = adapted(part, use_cache=True, cache_params=cache)
            cache = output.cache_params
            parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model, method", ALL)
def test_a_padded_batch_is_its_rows_alone(model: str, method: str) -> None:
    adapted, ids, missing = tiny.adapted(model, methods_of(method)), tiny.words(), 3
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[1, :missing], mask[1, :missing] = 0, 0
    with torch.no_grad():
        together = adapted(padded, attention_mask=mask, use_cache=False).logits
        alone = adapted(ids[1:, missing:], use_cache=False).logits
    torch.testing.assert_close(together[1:, missing:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model, method", [(m, n) for m in tiny.MODELS for n in tiny.MERGED])
def test_merged_weights_say_the_same_and_come_back(model: str, method: str) -> None:
    adapted, ids = tiny.adapted(model, [method]), tiny.words()
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    with torch.no_grad():
        wanted = adapted(ids).logits
        adapted.merge_adapter(safe_merge=True)
        torch.testing.assert_close(adapted(ids).logits, wanted, atol=1e-5, rtol=0)
        adapted.unmerge_adapter()
        assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, wanted, atol=1e-5, rtol=0)
    assert type(merged) is type(tiny.base(model))
    assert not any("transmamba" in name for name, _ in merged.named_modules())


@pytest.mark.parametrize("model", tiny.MODELS)
def test_more_states_merged_are_an_ordinary_model_of_a_larger_state_size(model: str, tmp_path: Path) -> None:
    adapted, ids = (
        tiny.adapted(model, [{"name": "additional_scan", "states": 3}, "lora_b", "a"]),
        tiny.words(),
    )
    with torch.no_grad():
        wanted = adapted(ids).logits
    adapted.merge_adapter()
    assert state_size(adapted) == 7
    adapted.unmerge_adapter()
    assert state_size(adapted) == 4
    adapted.merge_and_unload().save_pretrained(tmp_path)
    again = type(tiny.base(model)).from_pretrained(tmp_path)
    assert state_size(again) == 7
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, wanted, atol=1e-5, rtol=0)
    made = again.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(made, adapted.generate(ids, max_new_tokens=4, do_sample=False))


def state_size(model: Any) -> int:
    return getattr(model.config, "state_size", None) or model.config.mamba_d_state


def test_two_adapters_at_once_add_up() -> None:
    """Both with more states: a model with the states of both."""
    methods = [{"name": "additional_scan", "states": 2}, "lora_c", "state_offset_h"]
    adapted, ids = tiny.adapted("mamba", methods), tiny.words()
    from transmamba.peft import MambaPeftConfig

    adapted.add_adapter("other", MambaPeftConfig(methods=["additional_scan", "lora_c", "state_offset_h"]))
    adapted.set_adapter("other")
    tiny.train_(adapted, seed=3)
    parts = []
    with torch.no_grad():
        for active in (["default"], ["other"], ["default", "other"], ["other", "default"]):
            adapted.base_model.set_adapter(active)
            parts.append(adapted(ids).logits)
    torch.testing.assert_close(parts[2], parts[3], atol=1e-5, rtol=0)
    assert (parts[2] - parts[0]).abs().max() > 1e-3 and (parts[2] - parts[1]).abs().max() > 1e-3


@pytest.mark.parametrize("first, second", [("default", "other"), ("other", "default")])
def test_adapters_merged_one_after_the_other_are_both_merged(first: str, second: str) -> None:
    """One moves the rows that the other adds to, whichever was merged before."""
    from transmamba.peft import MambaPeftConfig

    adapted, ids = tiny.adapted("mamba", ["additional_scan", "lora_x"]), tiny.words()
    adapted.add_adapter("other", MambaPeftConfig(methods=["lora_c", "a", "additional_scan"]))
    adapted.set_adapter("other")
    tiny.train_(adapted, seed=3)
    adapted.base_model.set_adapter(["default", "other"])
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    with torch.no_grad():
        wanted = adapted(ids).logits
        adapted.merge_adapter([first])
        adapted.merge_adapter([second])
        torch.testing.assert_close(adapted(ids).logits, wanted, atol=1e-5, rtol=0)
        adapted.unmerge_adapter()
        assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())
