"""Captures, logits that wait, branches, and what layers of text are told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.core.layout import Grid
from transmamba.core.output import Branches, Capture, Context, Logits, Output, Stream, Term, union


def names(*found: str) -> frozenset[str]:
    return frozenset(found)


def test_captures_unite() -> None:
    tokens = torch.tensor([1, 2])
    one = Capture(hidden=frozenset({1}), mixers={0: names("q"), 3: names("input")})
    two = Capture(hidden=frozenset({2}), branches=frozenset({2}), mixers={0: names("k", "q")}, tokens=tokens)
    both = one.union(two)
    assert both.hidden == {1, 2} and both.branches == {2}
    assert both.mixers == {0: {"q", "k"}, 3: {"input"}} == two.union(one).mixers
    assert both.tokens is tokens and two.union(one).tokens is tokens and two.union(two).tokens is tokens
    assert one.mixers[0] == {"q"}, "neither is changed"
    with pytest.raises(ValueError, match="different token subsets"):
        two.union(Capture(tokens=torch.tensor([1, 2])))
    drawn = one.on(tokens)
    assert drawn.tokens is tokens and drawn.hidden == {1} and one.tokens is None


def test_captures_unite_by_stream() -> None:
    picture, more, text = (Capture(hidden=frozenset({k})) for k in range(3))
    found = union([{"image": picture}, {}, {"text": text, "image": more}])
    assert found.keys() == {"image", "text"}
    assert found["image"].hidden == {0, 1} and found["text"] is text
    assert union([]) == {}


def test_branches_unpack_to_both_directions() -> None:
    merged, half, weight = torch.randn(2, 3, 4), torch.randn(2, 3, 5), torch.randn(4, 5)
    ahead, back = Branches(merged, half, weight)
    torch.testing.assert_close(ahead, merged + half @ weight.T)
    torch.testing.assert_close(back, merged - half @ weight.T)
    ahead, back = Branches(merged, half @ weight.T)
    torch.testing.assert_close(ahead - back, 2 * half @ weight.T)
    assert all(branch is merged for branch in Branches(merged)), "a layer without directions"


def test_the_only_stream_of_an_output() -> None:
    stream = Stream(Grid(1, 1))
    assert Output({"image": stream}).stream is stream
    for streams in ({}, {"image": stream, "text": stream}):
        with pytest.raises(ValueError, match="to unpack"):
            _ = Output(streams).stream


def test_a_detached_term_says_the_same() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    term = Term(weight * 3, torch.tensor([0.5]))
    alone = term.detached()
    assert alone.sum == 6 and not alone.sum.requires_grad and alone.parts is term.parts


# --- logits -----------------------------------------------------------------------------------------------


def counting(hidden: Tensor, weight: Tensor) -> tuple[Logits, list[int]]:
    """Logits hidden Wᵀ, and of how many tokens each call made them."""
    calls: list[int] = []

    def head(x: Tensor) -> Tensor:
        calls.append(x[..., 0].numel())
        return F.linear(x, weight)

    return Logits(hidden, head), calls


@pytest.mark.parametrize("rows", [1, 4, 5, 15, 100])
def test_chunks_equal_the_whole(rows: int) -> None:
    """Values and gradients, with no more tokens at a time than asked for."""
    hidden = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(15, 7, dtype=torch.float64)
    whole = (hidden @ weight.T).flatten(0, 1)
    wanted = torch.autograd.grad((whole * upstream).sum(), (hidden, weight))
    logits, calls = counting(hidden, weight)
    parts = list(logits.chunks(rows))
    assert [number for part, _ in parts for number in range(15)[part]] == list(range(15))
    torch.testing.assert_close(torch.cat([made for _, made in parts]), whole)
    found = torch.autograd.grad(
        torch.stack([(made * upstream[part]).sum() for part, made in parts]).sum(), (hidden, weight)
    )
    torch.testing.assert_close(found, wanted)
    assert max(calls) <= rows and sum(calls) == 15


def test_logits_are_made_when_asked_for_and_once() -> None:
    logits, calls = counting(torch.randn(2, 3, 4), torch.randn(5, 4))
    assert not calls
    assert logits().shape == (2, 3, 5) and logits() is logits() and calls == [6]


# --- what layers of text are told -------------------------------------------------------------------------


def test_context_of_pictures_is_empty() -> None:
    assert Context.of({"image": torch.zeros(1, 3, 2, 2)}) == Context()


def test_positions_of_padded_text_count_its_real_tokens() -> None:
    """Padding before a text does not move it; padding after it has some place or other."""
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]).bool()
    context = Context.of({"text": torch.zeros(4, 5, dtype=torch.int64), "text_mask": mask})
    assert context.mask is mask and context.segments is None and context.positions is not None
    for row, real in enumerate(mask):
        assert context.positions[row, real].tolist() == list(range(int(real.sum())))
    assert context.positions.min() >= 0 and context.positions.max() < 5, "all of them exist in a table"


def test_positions_of_packed_text_begin_anew_with_each_document() -> None:
    segments = torch.tensor([[0, 0, 0, 1, 1, 2], [4, 4, 7, 7, 7, 7], [3, 3, 3, 3, 3, 3]], dtype=torch.int32)
    context = Context.of({"text": torch.zeros(3, 6, dtype=torch.int64), "text_segment": segments})
    assert context.segments is segments and context.mask is None and context.positions is not None
    assert context.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def test_positions_of_plain_text_are_its_places() -> None:
    context = Context.of({"text": torch.zeros(2, 4, dtype=torch.int64)})
    assert context.positions is not None and context.positions.tolist() == [[0, 1, 2, 3]] * 2
