"""Attention and MLP sublayers against loops in float64, over everything a text tower adds to a picture's."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from transmamba.core.output import Context
from transmamba.views.sublayers import Affine, Attention, Mlp, Norm

B, L, D, HEADS, P = 3, 7, 12, 4, 5

# each row padded elsewhere: after, before, not at all
MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]).bool()
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1, 1, 2], [5, 5, 5, 5, 5, 5, 5], [0, 1, 1, 2, 2, 2, 2]]).int()


def attention(kv_heads: int | None, causal: bool, per_head_norms: bool, scaled: bool) -> Attention:
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def linear(out: int, inner: int) -> Affine:
        return Affine(1.5 * random(out, inner) / inner**0.5, 0.3 * random(out))

    shared = (kv_heads or HEADS) * P
    norms = (
        [Norm(1 + 0.3 * random(P), None, 1e-6, rms=True) for _ in range(2)] if per_head_norms else [None] * 2
    )
    return Attention(
        norm=Norm(1 + 0.3 * random(D), 0.3 * random(D), 1e-5),
        q=linear(HEADS * P, D),
        k=linear(shared, D),
        v=linear(shared, D),
        o=linear(D, HEADS * P),
        heads=HEADS,
        kv_heads=kv_heads,
        causal=causal,
        q_norm=norms[0],
        k_norm=norms[1],
        scale=random(D) if scaled else None,
    )


def rms(x: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return x
    assert norm.weight is not None
    return x / (x.square().mean() + norm.eps).sqrt() * norm.weight.double()


def by_loops(layer: Attention, x: Tensor, context: Context) -> Tensor:
    """What attention adds, (B, L, D) float64: token by token, head by head."""
    x = x.double()
    assert layer.norm.weight is not None and layer.norm.bias is not None
    spread = (x.var(-1, unbiased=False, keepdim=True) + layer.norm.eps).sqrt()
    normed = (x - x.mean(-1, keepdim=True)) / spread * layer.norm.weight.double() + layer.norm.bias.double()

    def project(affine: Affine) -> Tensor:
        assert affine.bias is not None
        return normed @ affine.weight.double().T + affine.bias.double()

    q, k, v = (project(each) for each in (layer.q, layer.k, layer.v))
    shares = layer.heads // (layer.kv_heads or layer.heads)
    values = torch.zeros(B, L, HEADS * P, dtype=torch.float64)
    for b, i, head in itertools.product(range(B), range(L), range(HEADS)):
        theirs = slice(head // shares * P, (head // shares + 1) * P)
        mine = slice(head * P, (head + 1) * P)
        query = rms(q[b, i, mine], layer.q_norm)
        scores = {}
        for j in range(L):
            if readable(context, layer.causal, b, i, j):
                scores[j] = math.exp(float(query @ rms(k[b, j, theirs], layer.k_norm)) / P**0.5)
        total = sum(scores.values())
        for j, score in scores.items():
            values[b, i, mine] += score / total * v[b, j, theirs]
    assert layer.o.bias is not None
    out = values @ layer.o.weight.double().T + layer.o.bias.double()
    return out if layer.scale is None else out * layer.scale.double()


def readable(context: Context, causal: bool, b: int, i: int, j: int) -> bool:
    """Whether token i of row b reads token j; a padded one reads itself at least."""
    if i == j:
        return True
    if causal and j > i:
        return False
    if context.segments is not None and context.segments[b, i] != context.segments[b, j]:
        return False
    return context.mask is None or bool(context.mask[b, j])


CONTEXTS = {
    "plain": Context(),
    "mask": Context(mask=MASK),
    "segments": Context(segments=SEGMENTS),
    "both": Context(mask=MASK, segments=SEGMENTS),
}


@pytest.mark.parametrize("kv_heads", [None, 4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
def test_attention_equals_the_loops(context: str, causal: bool, kv_heads: int | None) -> None:
    layer = attention(kv_heads, causal, per_head_norms=kv_heads == 2, scaled=kv_heads == 1)
    x = torch.randn(B, L, D, generator=torch.Generator().manual_seed(3))
    found = layer(x, CONTEXTS[context], lambda *_: None)
    expected = by_loops(layer, x, CONTEXTS[context])
    assert expected.std() > 0.1, "a test of nothing"
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_says_nothing_to_real_tokens(side: str, causal: bool) -> None:
    """The same text with padding on either side, whatever the padding holds: the same, and nothing NaN."""
    layer = attention(2, causal, per_head_norms=True, scaled=False)
    text = torch.randn(1, 4, D, generator=torch.Generator().manual_seed(3))
    alone = layer(text, Context(), lambda *_: None)
    rest = 100 * torch.randn(1, 3, D)
    parts, real = ([rest, text], slice(3, 7)) if side == "left" else ([text, rest], slice(0, 4))
    mask = torch.zeros(1, 7, dtype=torch.bool)
    mask[:, real] = True
    padded = layer(torch.cat(parts, dim=1), Context(mask=mask), lambda *_: None)
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[:, real], alone, rtol=1e-5, atol=1e-5)


def test_documents_of_a_packed_row_do_not_see_each_other() -> None:
    layer = attention(2, True, per_head_norms=False, scaled=False)
    first, second = (torch.randn(1, n, D, generator=torch.Generator().manual_seed(n)) for n in (3, 4))
    alone = torch.cat([layer(part, Context(), lambda *_: None) for part in (first, second)], dim=1)
    segments = torch.tensor([[7, 7, 7, 9, 9, 9, 9]], dtype=torch.int32)
    packed = layer(torch.cat([first, second], dim=1), Context(segments=segments), lambda *_: None)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_observers_see_what_is_inside() -> None:
    """Shapes by head before sharing, and the values that the output projection reads."""
    layer, seen = attention(2, True, per_head_norms=False, scaled=True), dict[str, Any]()
    x = torch.randn(B, L, D)
    made = layer(x, Context(mask=MASK), seen.__setitem__)
    assert seen["q"].shape == (B, HEADS, L, P) and seen["k"].shape == (B, 2, L, P)
    assert layer.scale is not None
    torch.testing.assert_close(layer.o(seen["values"]) * layer.scale, made)


def test_mlp_by_hand() -> None:
    torch.manual_seed(0)
    layer = Mlp(
        Norm(torch.randn(D), None, 1e-6, rms=True),
        Affine(torch.randn(9, D), torch.randn(9)),
        Affine(torch.randn(D, 9)),
        torch.relu,
        scale=torch.randn(D),
    )
    x, seen = torch.randn(B, L, D), dict[str, Tensor]()
    made = layer(x, Context(), seen.__setitem__)
    assert layer.norm.weight is not None and layer.up.bias is not None and layer.scale is not None
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.norm.weight
    neurons = (normed @ layer.up.weight.T + layer.up.bias).clamp_min(0)
    torch.testing.assert_close(seen["neurons"], neurons, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made, neurons @ layer.down.weight.T * layer.scale, rtol=1e-4, atol=1e-4)
