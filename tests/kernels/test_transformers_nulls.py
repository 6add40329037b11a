"""Hybrids without attention: their layer of zeros is not run, and the cache counts by it all the same."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from asked import Asked
from test_transformers_patch import assert_near, build
from test_transformers_tokens import cached
from transformers import DynamicCache, StaticCache
from transmamba_kernels import patch_transformers
from transmamba_kernels.transformers_nulls import layer_of_zeros

PURE = {"attn_layer_indices": [2], "num_hidden_layers": 3, "transmamba": {"student": "hybrid_lm", "null": 1}}


def pure(kind: str, **changes: Any) -> Any:
    """A hybrid without attention: its last layer is of attention, and of zeros."""
    attention = {"layer_types": ["mamba", "mamba", "attention"]} if kind == "granitemoehybrid" else {}
    model = build(kind, **{**PURE, **attention, "num_local_experts": 0, **changes}).eval()
    for parameter in model.model.layers[-1].parameters():
        parameter.data.zero_()
    return model


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", ["bamba", "granitemoehybrid"])
def test_a_layer_of_zeros_is_not_run(monkeypatch, kind, static):
    monkeypatch.setenv("TRANSMAMBA_KERNELS", "reference")
    model = pure(kind)
    text = torch.randint(1, 64, (2, 12), generator=torch.Generator().manual_seed(3))
    ran = []
    plain = type(model.model.layers[-1].self_attn).forward

    def attention(*args: Any, **kwargs: Any) -> Any:
        ran.append(1)
        return plain(*args, **kwargs)

    def made() -> Any:
        return StaticCache(model.config, 20) if static else DynamicCache(config=model.config)

    expected, cache = model(text, use_cache=False).logits[:, 4:], made()
    with pytest.MonkeyPatch.context() as patch, patch_transformers([kind]):
        patch.setattr(type(model.model.layers[-1].self_attn), "forward", attention)
        found = cached(model, text, 5, cache)
        assert not ran and int(cache.get_seq_length()) == 12
        assert_near(found, expected, "logits")
        assert not cache.layers[-1].keys.any() and cache.layers[-1].keys.shape[:2] == (2, 2)
        # it is looked at again where it has changed
        model.model.layers[-1].self_attn.o_proj.weight[0, 0] = 1
        cached(model, text, 5, made())
        assert len(ran) == 8
        model.model.layers[-1].self_attn.o_proj.weight[0, 0] = 0
        assert_near(cached(model, text, 5, made()), expected, "logits")
        assert len(ran) == 8
        model.model.layers[-1].input_layernorm.register_forward_hook(lambda *args: None)
        cached(model, text, 5, made())
        assert len(ran) == 16


def test_only_what_the_configuration_calls_null_is_left_out():
    model, stream = pure("bamba", transmamba={"student": "hybrid_lm", "null": 0}), torch.zeros(1, 1, 32)
    found = []
    for nulls in (0, 1):
        model.config.transmamba["null"] = nulls
        found.append([layer_of_zeros(layer, stream) for layer in model.model.layers])
    assert found == [[False] * 3, [False, False, True]]
    del model.config.transmamba
    assert not layer_of_zeros(model.model.layers[-1], stream)


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
def test_nothing_is_written_where_zeros_are(monkeypatch, static):
    """A static cache counts alone; one that grows has to have what it counts. Both as transformers leaves
    them."""
    monkeypatch.setenv("TRANSMAMBA_KERNELS", "reference")
    model, caches = pure("bamba"), []
    text = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(3))
    asked = Asked()
    for patched in (False, True):
        cache = StaticCache(model.config, 20) if static else DynamicCache(config=model.config)
        with patch_transformers(["bamba"]) if patched else nullcontext():
            cached(model, text, 5, cache)
            with asked:
                cached(model, text[:, :2], 1, cache, begin=9)
        caches.append(cache.layers[-1])
    theirs, ours = caches
    assert torch.equal(theirs.keys, ours.keys) and torch.equal(theirs.values, ours.values)
    assert int(theirs.get_seq_length()) == int(ours.get_seq_length()) == 11
    assert asked.counts["index_copy_"] == (4 if static else 0)  # all of them transformers'
