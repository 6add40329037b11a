"""Every method on every kind of model: identity, gradients, generation, padding, merging."""

from __future__ import annotations

import peft_models as tiny
import pytest
import torch
from transmamba_kernels import patch_transformers

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
    assert (fresh - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert (trained - wanted).abs().max() > 1e-4


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("model", tiny.MODELS)
def test_every_trained_tensor_has_a_gradient(model: str, patched: bool) -> None:
    adapted = tiny.adapted(model, tiny.METHODS).train()
    ids = tiny.words()
    with patch_transformers() if patched else patch_transformers([]):
        adapted(ids, labels=ids).loss.backward()
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("transmamba_adapters" in name), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


@pytest.mark.parametrize("model, method", ALL)
def test_generation_with_a_cache_is_generation_without(model: str, method: str) -> None:
    adapted, ids = tiny.adapted(model, methods_of(method)), tiny.words()
    options = dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)
    made = [adapted.generate(ids, use_cache=cached, **options) for cached in (True, False)]
    torch.testing.assert_close(torch.stack(made[0].logits), torch.stack(made[1].logits), atol=1e-4, rtol=0)


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
