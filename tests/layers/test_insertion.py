"""Tokens put between those of a row, against lists made by hand of the definition."""

from __future__ import annotations

import pytest
import torch
from asked import Asked
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from transmamba.core.output import Context
from transmamba.layers.insertion import Insertion, Where

CPU = torch.device("cpu")


def expected(length: int, tokens: int, where: Where) -> list[str]:
    """Names in their order: `a0` of the row, `p0` of what is put in."""
    row, put = [f"a{i}" for i in range(length)], [f"p{i}" for i in range(tokens)]
    if where == "prefix":
        return put + row
    if where == "suffix":
        return row + put
    if where == "both":
        half = (tokens + 1) // 2
        return put[:half] + row + put[half:]
    for i in reversed(range(tokens)):
        row.insert((i + 1) * length // (tokens + 1), put[i])
    return row


def named(found: Tensor, length: int) -> list[str]:
    """Of numbers: the row's own are 0, 1, .., those put in -1, -2, .."""
    return [f"a{int(x)}" if x >= 0 else f"p{-1 - int(x)}" for x in found]


@pytest.mark.parametrize("where", ["prefix", "suffix", "infix", "both"])
@pytest.mark.parametrize(("length", "tokens"), [(0, 2), (1, 1), (6, 1), (6, 3), (2, 5), (7, 4)])
def test_the_same_place_in_every_row(length: int, tokens: int, where: Where) -> None:
    put = Insertion.fixed(length, tokens, where, CPU)
    row = torch.arange(float(length)).view(1, -1, 1).expand(2, length, 3)
    soft = (-1 - torch.arange(float(tokens))).view(-1, 1).expand(tokens, 3)
    longer = put.place(row, soft)
    assert longer.shape == (2, length + tokens, 3)
    assert named(longer[1, :, 2], length) == expected(length, tokens, where)
    assert torch.equal(put.drop(longer), row)
    assert torch.equal(longer[:, put.places(None)], row)
    # who reads from the end meets the same
    mirrored = put.mirrored().place(row.flip(1), soft).flip(1)
    assert named(mirrored[0, :, 0], length) == expected(length, tokens, where)
    assert torch.equal(put.mirrored().drop(put.mirrored().place(row, soft)), row)


@pytest.mark.parametrize("where", ["prefix", "infix", "both"])
def test_gradients_are_those_of_an_index(where: Where) -> None:
    generator = torch.Generator().manual_seed(1)
    put = Insertion.fixed(5, 3, where, CPU)
    leaves = [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((2, 5, 4), (3, 4))]
    x, soft = (leaf.requires_grad_() for leaf in leaves)
    assert torch.autograd.gradcheck(lambda a, b: put.drop(put.place(a, b).square().cumsum(1)), (x, soft))
    weight = torch.randn(2, 8, 4, dtype=torch.float64, generator=generator)
    by_index = torch.cat([x, soft.expand(2, -1, -1)], dim=1)[:, put.source]
    wanted = torch.autograd.grad((by_index * weight).sum(), (x, soft))
    for found, want in zip(
        torch.autograd.grad((put.place(x, soft) * weight).sum(), (x, soft)), wanted, strict=True
    ):
        torch.testing.assert_close(found, want)


def test_behind_padding_wherever_it_is() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    put = Insertion.before(4, 2, Context(mask=mask), CPU)
    row = torch.arange(4.0).view(1, -1, 1).expand(5, 4, 1)
    soft = torch.tensor([[-1.0], [-2.0]])
    for found, real in zip(put.place(row, soft)[..., 0], mask.tolist(), strict=True):
        first = real.index(True) if any(real) else 3
        own = [f"a{i}" for i in range(4)]
        assert named(found, 4) == [*own[:first], "p0", "p1", *own[first:]]
    longer = put.mask(mask)
    assert longer is not None and longer.sum(1).tolist() == [4, 6, 4, 4, 2]
    assert torch.equal(put.drop(put.place(row, soft)), row)


WAITS = {"_local_scalar_dense", "nonzero"}


def test_a_layer_s_tokens_do_not_wait_for_the_device() -> None:
    row, soft, mask = torch.randn(2, 9, 3), torch.randn(2, 3), torch.ones(2, 9, dtype=torch.bool)
    for context in (Context(), Context(mask=mask)):
        with Asked() as asked:
            put = Insertion.before(9, 2, context, CPU)
            put.drop(put.place(row, soft))
        assert not WAITS & asked.counts.keys()
    with Asked() as asked:  # as packed rows do, once for all layers
        Insertion.before(9, 2, Context(segments=mask.int()), CPU)
    assert asked.counts.keys() >= WAITS


def test_what_another_mode_made_serves_training() -> None:
    """Nothing of a pass is kept for the next: neither inference's tensors nor those that hold no numbers."""
    for mode in (torch.inference_mode(), FakeTensorMode(), torch.device("meta")):
        with mode:
            Insertion.fixed(11, 2, "infix", CPU).mirrored().places(None)
        put = Insertion.fixed(11, 2, "infix", CPU)
        x = torch.randn(2, 11, 3, requires_grad=True)
        put.mirrored().place(x, torch.randn(2, 3))[:, put.source].sum().backward()
        assert x.grad is not None and type(put.own) is Tensor
