"""A cache of fixed size: what is read through it is what is read through one that grows, and a token stays in
place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import relative, texts
from test_hybrid_lm_folder import generated
from test_own_class import KINDS, NEARBY, SINKS, WINDOW, quiet, saved
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from transmamba.students.hybrid_lm.model import HybridStudent

__all__ = ["saved"]  # a fixture

# what waits for a device, or has a size that only it knows
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2")


@pytest.mark.parametrize("padding", [7, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_portions_through_it_are_the_rows_read_at_once(
    saved: dict[str, tuple[HybridStudent, Path]], kind: str, padding: int
) -> None:
    """Left-padded or not; the first portion may be one token, a later one longer than the window."""
    stock, text = saved[kind][0].stock(), texts(2, 40)
    mask = torch.ones_like(text)
    mask[1, :padding] = 0
    real = mask.bool()
    with torch.no_grad():
        whole = stock(text, attention_mask=mask, use_cache=False).logits
        for sizes in ((5, 1, 9, 1, 1, 7, 1, 1, 12, 1, 1), (1,) * 40, (40,)):
            cache, parts, at = stock.fixed_cache(40), [], 0
            for size in sizes:
                at += size
                given = dict(attention_mask=mask[:, :at], past_key_values=cache, use_cache=True)
                parts.append(stock(text[:, at - size : at], **given).logits)
            assert relative(torch.cat(parts, dim=1)[real], whole[real]) < 1e-5, sizes
            assert cache.get_seq_length() == 40


@pytest.mark.parametrize("kind", KINDS)
def test_generation_by_it_is_that_by_a_cache_that_grows(
    saved: dict[str, tuple[HybridStudent, Path]], kind: str
) -> None:
    stock = saved[kind][0].stock()
    quiet(stock)
    text = texts(3, 9)
    mask = torch.stack([torch.arange(9) >= 9 - length for length in (9, 1, 6)]).long()
    grown = generated(stock, text, attention_mask=mask)
    cache = stock.fixed_cache(32)
    for _ in range(2):  # the second time after a reset
        fixed = generated(stock, text, attention_mask=mask, past_key_values=cache)
        assert torch.equal(fixed, grown)
        cache.reset()
        assert all((places == -1).all() for places in cache.placed.values())
    beams = [
        generated(stock, text, attention_mask=mask, num_beams=3, past_key_values=each)
        for each in (None, stock.fixed_cache(32))
    ]
    assert torch.equal(*beams)


class _Waits(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        assert name not in WAITS, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def addresses(cache: Any) -> list[tuple[str, int, torch.Size]]:
    tables = [*cache.held, cache.placed, {"next": cache.next}]
    return [(str(name), x.data_ptr(), x.shape) for each in tables for name, x in each.items()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_read_in_place_and_waits_for_nothing(
    saved: dict[str, tuple[HybridStudent, Path]], kind: str
) -> None:
    """What a recording needs."""
    stock, text = saved[kind][0].stock(), texts(2, 24)
    cache = stock.fixed_cache(64)
    if stock.config.expert_layers:
        pytest.skip("its experts are a loop over those that were chosen, which asks the device")
    with torch.no_grad():
        stock(text[:, :20], past_key_values=cache, use_cache=True)
        before = addresses(cache)
        with _Waits():
            logits = [stock(text[:, t : t + 1], past_key_values=cache).logits for t in range(20, 24)]
        assert addresses(cache) == before
        whole = stock(text, use_cache=False).logits
    assert relative(torch.cat(logits, dim=1), whole[:, 20:]) < 1e-5


def test_its_size_is_that_of_its_length_and_windows(saved: dict[str, tuple[HybridStudent, Path]]) -> None:
    stock = saved["windows, mixed"][0].stock()
    cache = stock.fixed_cache(100)
    with torch.no_grad():
        stock(texts(1, 9), past_key_values=cache, use_cache=True)
    slots = [held["keys"].shape[2] for held in cache.held]
    small = -(-(WINDOW + SINKS + 1) // 8) * 8  # one slot more for what nobody reads, in eights
    assert slots == [small, 104, small] and NEARBY["window"] == WINDOW


def test_more_than_its_length_is_refused(saved: dict[str, tuple[HybridStudent, Path]]) -> None:
    stock = saved["windows, mixed"][0].stock()
    cache = stock.fixed_cache(8)
    with torch.no_grad():
        stock(texts(1, 8), past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match="9 tokens do not fit into a cache of 8"):
            stock(texts(1, 1), past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="length is 0; write at least 1"):
        stock.fixed_cache(0)


def test_replays_are_counted_by_who_replays(saved: dict[str, tuple[HybridStudent, Path]]) -> None:
    stock = saved["windows, mixed"][0].stock()
    cache = stock.fixed_cache(8)
    with torch.no_grad():
        stock(texts(1, 6), past_key_values=cache, use_cache=True)
    cache.advance(2)
    assert cache.get_seq_length() == 8
    with pytest.raises(ValueError, match="9 tokens do not fit into a cache of 8"):
        cache.advance()
    assert cache.get_seq_length() == 8


@pytest.mark.parametrize("rows", [1, 3])
def test_another_number_of_rows_is_refused(saved: dict[str, tuple[HybridStudent, Path]], rows: int) -> None:
    """Also after a reset; a cache that grows takes any then."""
    stock = saved["window and scan"][0].stock()
    with torch.no_grad():
        grown = stock(texts(2, 8), use_cache=True).past_key_values
        fixed = stock.fixed_cache(32)
        stock(texts(2, 8), past_key_values=fixed, use_cache=True)
        for cache in (grown, fixed):
            with pytest.raises(ValueError, match=f"holds 2 rows, {rows} came; make another"):
                stock(texts(rows, 1), past_key_values=cache, use_cache=True)
            cache.reset()
        stock(texts(rows, 8), past_key_values=grown, use_cache=True)
        with pytest.raises(ValueError, match=f"holds 2 rows, {rows} came; make another"):
            stock(texts(rows, 8), past_key_values=fixed, use_cache=True)


def test_heads_that_share_keys_read_one_token_as_each_would() -> None:
    """Against softmax written out, in float64, with a mask of its own for each row."""
    from transmamba.students.hybrid_lm.own.blocks_transmamba import added
    from transmamba.students.hybrid_lm.own.configuration_transmamba import HybridConfig
    from transmamba.students.hybrid_lm.own.layers_transmamba import HybridAttention

    torch.manual_seed(0)
    layer = HybridAttention(HybridConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=4), 0)
    q, k, v = torch.randn(3, 6, 1, 4), torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    allowed = torch.rand(3, 1, 1, 5) < 0.6
    allowed[..., 0] = True

    def slow(row: int, head: int) -> Tensor:
        key, value = k[row, head // 3].double(), v[row, head // 3].double()
        scores = (key @ q[row, head, 0].double() / 2).masked_fill(~allowed[row, 0, 0], -torch.inf)
        return scores.softmax(0) @ value

    wanted = torch.stack([torch.stack([slow(row, head) for head in range(6)]) for row in range(3)])
    for dtype in (torch.float64, torch.float32):
        mask = added(allowed, dtype)
        assert mask.stride(-2) % 8 == 0 and mask.shape == allowed.shape
        got = layer._attended(q.to(dtype), k.to(dtype), v.to(dtype), mask)
        torch.testing.assert_close(got[:, :, 0].double(), wanted, rtol=1e-5, atol=1e-6)
