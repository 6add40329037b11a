"""Adapters on the other models with mixers that transformers has: a smoke test each."""

from __future__ import annotations

from typing import Any

import peft_models as tiny
import pytest
import torch
from hybrid_models import CANNOT, HYBRIDS
from torch import Tensor

from transmamba.errors import UserError


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_takes_all_methods_at_once(name: str) -> None:
    """Identity at the start, a gradient for every trained tensor, generation with a cache as without."""
    methods = [method for method in tiny.METHODS if method not in CANNOT.get(name, ())]
    ids = tiny.words()
    with torch.no_grad():
        wanted = tiny.base(name)(ids).logits
        still = [method for method in methods if method not in tiny.RANDOM]
        fresh = tiny.adapted(name, still, trained=False)(ids).logits
    assert (fresh - wanted).abs().max() <= 3e-6 * wanted.abs().max()
    adapted = tiny.adapted(name, methods)
    options = dict(max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)
    made = [adapted.generate(ids, use_cache=cached, **options) for cached in (True, False)]
    torch.testing.assert_close(torch.stack(made[0].logits), torch.stack(made[1].logits), atol=1e-4, rtol=0)
    adapted.train()(ids, labels=ids, use_cache=False).loss.backward()
    for key, parameter in adapted.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, key
    found = adapted.coverage()
    assert found.mixers[0] == found.mixers[1] > 0


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_keeps_what_is_merged(name: str) -> None:
    methods = [method for method in tiny.MERGED if method not in CANNOT.get(name, ())]
    adapted, ids = tiny.adapted(name, methods), tiny.words()
    with torch.no_grad():
        wanted = adapted(ids).logits
        torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CANNOT)
def test_more_states_where_they_would_change_the_others_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot have more states"):
        tiny.adapted(name, ["additional_scan"])


LIMITED = ["mamba2", "bamba", "granite", "falcon_h1", "nemotron_h", "zamba2"]


@pytest.mark.parametrize("methods", [["initial_state"], ["initial_state", "affix", "prompt"]])
@pytest.mark.parametrize("name", LIMITED)
def test_a_least_step_size_lets_no_padding_decay_the_initial_state(name: str, methods: list[str]) -> None:
    """The row alone says what the padded one is, and what a cache holds behind it."""
    adapted, ids = tiny.adapted(name, methods), tiny.words(2, 7)
    mixers = [module for module in adapted.modules() if "time_step_limit" in vars(module)]
    assert mixers
    for mixer in mixers:
        mixer.time_step_limit = (0.1, 5.0)
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[1, :3], mask[1, :3] = 0, 0
    with torch.no_grad():
        together = adapted(padded, attention_mask=mask, use_cache=True)
        alone = adapted(ids[1:, 3:], use_cache=True)
        uncached = adapted(padded, attention_mask=mask, use_cache=False)
    for made in (together, uncached):
        torch.testing.assert_close(made.logits[1, 3:], alone.logits[0], atol=1e-5, rtol=0)
    for layer in {mixer.layer_idx for mixer in mixers}:
        torch.testing.assert_close(state(together, layer)[1], state(alone, layer)[0], atol=1e-5, rtol=0)


def state(output: Any, layer: int) -> Tensor:
    cache = output.get("cache_params")
    cache = output.past_key_values if cache is None else cache
    found: Tensor = cache.layers[layer].recurrent_states[0]
    return found
