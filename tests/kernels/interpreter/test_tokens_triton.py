"""Models of transformers patched to run their tokens on the Triton kernels."""

from __future__ import annotations

import pytest
import torch
from test_transformers_nulls import PURE
from test_transformers_patch import assert_near, build
from test_transformers_tokens import cached, states
from transformers import DynamicCache
from transmamba_kernels import patch_transformers


@torch.no_grad()
@pytest.mark.parametrize("groups", [2, 8])
def test_a_hybrid_decodes_what_it_says_without_a_cache(groups, device, monkeypatch):
    """Its last layer is of zeros, which it does not run."""
    model = build("bamba", **PURE, mamba_n_groups=groups).eval()
    for parameter in model.model.layers[-1].parameters():
        parameter.data.zero_()
    text = torch.randint(1, 64, (2, 8), generator=torch.Generator().manual_seed(3))
    theirs, cache = DynamicCache(config=model.config), DynamicCache(config=model.config)
    monkeypatch.setenv("TRANSMAMBA_KERNELS", "cpu")
    cached(model, text, 5, theirs)
    expected = model(text, use_cache=False).logits[:, 4:]
    monkeypatch.undo()
    model, text = model.to(device), text.to(device)
    with patch_transformers(["bamba"]):
        found = cached(model, text, 5, cache)
    assert_near(found.cpu(), expected, "logits")
    for ours, right in zip(states(cache), states(theirs), strict=True):
        assert_near(ours.cpu(), right, "states", 1e-5)
