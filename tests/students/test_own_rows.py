"""The class that travels: its memory follows its rows, and autocast changes neither its memory's types nor
how far it is from single precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import relative, texts
from test_own_class import KINDS, saved

from transmamba.students.hybrid_lm.model import HybridStudent

__all__ = ["saved"]  # a fixture

Saved = dict[str, tuple[HybridStudent, Path]]


@torch.no_grad()
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_remembered_moves_with_its_rows(saved: Saved, kind: str, fixed: bool) -> None:
    """Rows of unlike padding, in another order, each twice, and some of those: what is read then is what
    these rows read as a whole."""
    stock, text = saved[kind][0].stock(), texts(3, 34)
    mask = torch.ones_like(text)
    mask[0, :9], mask[1, :3] = 0, 0
    cache = stock(
        text[:, :24],
        attention_mask=mask[:, :24],
        past_key_values=stock.fixed_cache(34) if fixed else None,
        use_cache=True,
    ).past_key_values
    cache.reorder_cache(torch.tensor([1, 1, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([4, 2, 5]))
    rows = torch.tensor([0, 1, 0])
    parts = []
    for t in range(24, 34):
        given = dict(attention_mask=mask[rows, : t + 1], past_key_values=cache, use_cache=True)
        parts.append(stock(text[rows, t : t + 1], **given).logits)
    whole = stock(text[rows], attention_mask=mask[rows], use_cache=False).logits[:, 24:]
    assert relative(torch.cat(parts, dim=1), whole) < 1e-5


@pytest.mark.parametrize("tokens", [40, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_and_remembers_under_autocast(saved: Saved, kind: str, tokens: int) -> None:
    """As a Trainer with bf16 does: every weight has a gradient that is a number; states stay in single
    precision, keys and values are of one type."""
    stock, text = saved[kind][0].stock(), texts(2, tokens)
    with torch.no_grad():
        wanted = stock(text, use_cache=False).logits
        rounded = stock.to(torch.bfloat16)(text, use_cache=False).logits.float()
        stock.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made: Any = stock.train()(text, labels=text)
        made.loss.backward()
        with torch.no_grad():
            remembered = stock.eval()(text, use_cache=True)
            for t in range(3):
                one = stock(text[:, t : t + 1], past_key_values=remembered.past_key_values, use_cache=True)
    assert relative(remembered.logits.float(), wanted) <= max(1.5 * relative(rounded, wanted), 1e-3)
    assert one.logits.isfinite().all()
    for name, parameter in stock.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert stock.model.embed_tokens.weight.grad.abs().sum() > 0
    for held in remembered.past_key_values.held:
        assert "state" not in held or held["state"].dtype == torch.float32
        assert "keys" not in held or held["keys"].dtype == held["values"].dtype
