"""Token layouts and captures."""

from __future__ import annotations

import pytest
import torch

from transmamba.core.output import Capture, TokenLayout

VIT = TokenLayout(grid=(2, 3), special=(("cls", 0),))
VIM = TokenLayout(grid=(2, 3), special=(("cls", 3),))
DEIT = TokenLayout(grid=(2, 3), special=(("cls", 0), ("dist", 1)))
BARE = TokenLayout(grid=(2, 3))


def test_length_and_patches() -> None:
    assert (VIT.length, VIM.length, DEIT.length, BARE.length) == (7, 7, 8, 6)
    assert VIM.patches == [0, 1, 2, 4, 5, 6] and VIT.patches == [1, 2, 3, 4, 5, 6]
    assert TokenLayout(grid=(1, 2), special=(("a", 3), ("b", 1))).patches == [0, 2]


def tokens(layout: TokenLayout) -> list[str]:
    names = {position: name for name, position in layout.special}
    patches = iter(range(layout.length))
    return [names[i] if i in names else f"p{next(patches)}" for i in range(layout.length)]


@pytest.mark.parametrize(
    ("source", "target"), [(a, b) for a in (VIT, VIM, DEIT, BARE) for b in (VIT, VIM, DEIT, BARE)]
)
def test_match_pairs_tokens_by_name_in_the_target_s_order(source: TokenLayout, target: TokenLayout) -> None:
    here, there = source.match(target)
    assert [tokens(source)[i] for i in here] == [tokens(target)[i] for i in there]
    assert there.tolist() == sorted(there.tolist())
    assert {tokens(source)[i] for i in here} == set(tokens(source)) & set(tokens(target))


def test_class_token_moves_to_the_middle() -> None:
    here, there = VIT.match(VIM)
    assert here.tolist() == [1, 2, 3, 0, 4, 5, 6] and there.tolist() == list(range(7))


def test_grids_must_agree() -> None:
    with pytest.raises(ValueError, match=r"patch grids differ: \(2, 3\) and \(3, 2\)"):
        VIT.match(TokenLayout(grid=(3, 2)))


def test_captures_unite() -> None:
    tokens_ = torch.tensor([1, 2])
    one = Capture(hidden=frozenset({1}), mixers=frozenset({0}))
    two = Capture(hidden=frozenset({2}), branches=frozenset({2}), tokens=tokens_)
    both = one.union(two)
    assert both.hidden == {1, 2} and both.branches == {2} and both.mixers == {0}
    assert both.tokens is tokens_ and two.union(one).tokens is tokens_ and two.union(two).tokens is tokens_
    with pytest.raises(ValueError, match="different token subsets"):
        two.union(Capture(tokens=torch.tensor([3])))
