"""A long text is read some tokens at a time, beside each other: the numbers are those of every token held
against every other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import relative, texts
from test_own_class import KINDS, SINKS, WINDOW, saved

from transmamba.students.hybrid_lm.model import HybridStudent
from transmamba.students.hybrid_lm.own import blocks_transmamba, layers_transmamba
from transmamba.students.hybrid_lm.own.blocks_transmamba import Blocks

__all__ = ["saved"]  # a fixture

NEAR = [kind for kind in KINDS if "window" in kind]


def masks(tokens: int) -> dict[str, torch.Tensor]:
    """(2, tokens) each; of the second row alone something is padding."""
    found = {
        name: torch.ones(2, tokens, dtype=torch.long) for name in ("none", "left", "short", "all", "between")
    }
    found["left"][1, :11] = 0
    found["short"][1, : tokens - SINKS + 1] = 0
    found["all"][1] = 0
    found["between"][1, 5:8] = 0
    found["right"] = found["left"].flip(1)
    return found


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of 4 tokens; how many tokens were read so."""
    counted: list[int] = []
    ours = Blocks.attend

    def watched(self: Any, q: Any, *rest: Any) -> Any:
        counted.append(q.shape[2])
        return ours(self, q, *rest)

    monkeypatch.setattr(blocks_transmamba, "BLOCK", 4)
    monkeypatch.setattr(Blocks, "attend", watched)
    return counted


@torch.no_grad()
@pytest.mark.parametrize("tokens", [WINDOW + 5, 31, 32])
@pytest.mark.parametrize("kind", NEAR)
def test_blocks_are_the_whole_matrix(
    saved: dict[str, tuple[HybridStudent, Path]], kind: str, tokens: int, in_blocks: list[int]
) -> None:
    """What has padding between its tokens is read as a whole; so is what is no longer than a window and a
    block."""
    stock, text = saved[kind][0].stock(), texts(2, tokens)
    layers = sum(each != "full_attention" for each in stock.config.layer_kinds)
    for name, mask in masks(tokens).items():
        in_blocks.clear()
        found = stock(text, attention_mask=mask, use_cache=False).logits
        assert in_blocks == ([] if name == "between" else [tokens] * layers), name
        blocks_transmamba.BLOCK = tokens
        wanted = stock(text, attention_mask=mask, use_cache=False).logits
        blocks_transmamba.BLOCK = 4
        real = mask.bool()
        assert relative(found[real], wanted[real]) < 1e-5, name
        assert found.isfinite().all()
    in_blocks.clear()
    stock(text[:, : WINDOW + 4], use_cache=False)
    assert not in_blocks


@torch.no_grad()
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", ["none", "left", "right"])
@pytest.mark.parametrize("kind", NEAR)
def test_what_is_remembered_of_blocks_is_what_later_tokens_read(
    saved: dict[str, tuple[HybridStudent, Path]], kind: str, name: str, fixed: bool, in_blocks: list[int]
) -> None:
    """Padding behind a first portion, too, leaves windows and states alone."""
    stock, text = saved[kind][0].stock(), texts(2, 40)
    mask = torch.ones_like(text)
    mask[:, :31] = masks(31)[name]
    cache: Any = stock.fixed_cache(40) if fixed else None
    cache = stock(
        text[:, :31], attention_mask=mask[:, :31], past_key_values=cache, use_cache=True
    ).past_key_values
    assert in_blocks
    parts = [
        stock(text[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache).logits
        for t in range(31, 40)
    ]
    for row in range(2):
        alone = text[row][mask[row].bool()][None]
        blocks_transmamba.BLOCK = 1000
        wanted = stock(alone, use_cache=False).logits[0, -9:]
        blocks_transmamba.BLOCK = 4
        assert relative(torch.cat(parts, dim=1)[row], wanted) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("portion", [4, 12])
@pytest.mark.parametrize("name", ["none", "left", "between"])
@pytest.mark.parametrize("kind", NEAR)
def test_later_tokens_too_are_read_some_at_a_time(
    saved: dict[str, tuple[HybridStudent, Path]],
    kind: str,
    name: str,
    portion: int,
    fixed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No mask has more rows than a portion, however many tokens come behind others; so it is of a first
    portion with padding between its tokens, where something is remembered. One that is longer than a window
    and a block is read in blocks where nothing lies before it."""
    stock, text = saved[kind][0].stock(), texts(2, 61)
    mask = torch.ones_like(text)
    mask[:, :31] = masks(31)[name]
    wanted = stock(text, attention_mask=mask, use_cache=False, output_hidden_states=True)
    asked: list[int] = []
    ours = blocks_transmamba.added

    def watched(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        asked.append(allowed.shape[2])
        return ours(allowed, dtype)

    monkeypatch.setattr(blocks_transmamba, "BLOCK", 4)
    monkeypatch.setattr(blocks_transmamba, "PORTION", portion)
    monkeypatch.setattr(layers_transmamba, "added", watched)
    cache: Any = stock.fixed_cache(61) if fixed else None
    first = stock(text[:, :31], attention_mask=mask[:, :31], past_key_values=cache, use_cache=True)
    cache = first.past_key_values
    if name == "left":
        asked.clear()  # full attention's, of the first portion
    later = stock(
        text[:, 31:],
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1)[:, 31:],
        past_key_values=cache,
        output_hidden_states=True,
    )
    assert asked and max(asked) == portion
    real = mask.bool()
    logits = torch.cat([first.logits, later.logits], dim=1)
    assert relative(logits[real], wanted.logits[real]) < 1e-5
    assert len(later.hidden_states) == len(wanted.hidden_states)
    for mine, theirs in zip(later.hidden_states, wanted.hidden_states, strict=True):
        assert relative(mine, theirs[:, 31:]) < 1e-5
    if fixed:
        before = cache.read
        with pytest.raises(ValueError, match="66 tokens do not fit"):
            stock(text[:, :5], past_key_values=cache)
        assert cache.read == before


@torch.no_grad()
def test_a_turn_of_a_chat_is_launched_a_few_times(saved: dict[str, tuple[HybridStudent, Path]]) -> None:
    """A GPU waits for Python in such a layer: in portions of a block 2,000 tokens took 16 times as many
    operations as the same tokens alone do."""
    stock, layers = saved["window and scan"][0].stock(), 0

    def called(*_: Any) -> None:
        nonlocal layers
        layers += 1

    stock.model.layers[0].register_forward_hook(called)
    read = stock(texts(1, 300), use_cache=True).past_key_values
    for tokens, times in ((1, 1), (1024, 1), (2000, 2)):
        layers = 0
        stock(texts(1, tokens), past_key_values=read)
        assert layers == times


def test_blocks_have_the_gradient_of_the_whole_matrix(
    saved: dict[str, tuple[HybridStudent, Path]], in_blocks: list[int]
) -> None:
    stock, text = saved["window and scan"][0].stock(), texts(2, 31)
    found = {}
    for size in (4, 1000):
        blocks_transmamba.BLOCK = size
        stock.zero_grad()
        stock(text, labels=text, use_cache=False).loss.backward()
        found[size] = {name: p.grad.clone() for name, p in stock.named_parameters() if p.grad is not None}
    assert in_blocks and found[4].keys() == found[1000].keys()
    for name, gradient in found[4].items():
        assert relative(gradient, found[1000][name]) < 1e-4, name
