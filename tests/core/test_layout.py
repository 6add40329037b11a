"""Token layouts: where a token comes from, and which tokens two streams share."""

from __future__ import annotations

from itertools import product

import pytest

from transmamba.core.layout import Frames, Grid, Layout, Sequence, Spliced

VIT = Grid(2, 3, special=(("cls", 0),))
VIM = Grid(2, 3, special=(("cls", 3),))
DEIT = Grid(2, 3, special=(("cls", 0), ("dist", 1)))
BARE = Grid(2, 3)
FILM = Frames(2, 1, 3, special=(("cls", 0),))
FILM_IN_THE_MIDDLE = Frames(2, 1, 3, special=(("reg0", 0), ("cls", 4)))


def test_length_and_patches() -> None:
    assert (VIT.length, VIM.length, DEIT.length, BARE.length) == (7, 7, 8, 6)
    assert VIM.patches == [0, 1, 2, 4, 5, 6] and VIT.patches == [1, 2, 3, 4, 5, 6]
    assert Grid(1, 2, special=(("a", 3), ("b", 1))).patches == [0, 2]
    assert (FILM.num_patches, FILM.length, FILM_IN_THE_MIDDLE.patches) == (6, 7, [1, 2, 3, 5, 6, 7])


def tokens(layout: Grid | Frames) -> list[str]:
    names = {position: name for name, position in layout.special}
    patches = iter(range(layout.length))
    return [names[i] if i in names else f"p{next(patches)}" for i in range(layout.length)]


PAIRS = [*product((VIT, VIM, DEIT, BARE), repeat=2), *product((FILM, FILM_IN_THE_MIDDLE), repeat=2)]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_match_pairs_tokens_by_name_in_the_target_s_order(source: Layout, target: Layout) -> None:
    assert isinstance(source, Grid | Frames) and isinstance(target, Grid | Frames)
    match = source.match(target)
    assert [tokens(source)[i] for i in match.here] == [tokens(target)[i] for i in match.there]
    assert match.there.tolist() == sorted(match.there.tolist())
    assert {tokens(source)[i] for i in match.here} == set(tokens(source)) & set(tokens(target))


def test_class_token_moves_to_the_middle() -> None:
    match = VIT.match(VIM)
    assert match.here.tolist() == [1, 2, 3, 0, 4, 5, 6] and match.there.tolist() == list(range(7))


@pytest.mark.parametrize("text", [Sequence(), Spliced(("image", "text"))])
def test_rows_of_text_share_all_their_tokens(text: Layout) -> None:
    assert text.match(type(text)(*vars(text).values())) is None
    assert text.item == "tokens" and VIT.item == FILM.item == "samples"


def test_every_layout_is_one() -> None:
    assert all(isinstance(layout, Layout) for layout in (VIT, FILM, Sequence(), Spliced(("text",))))


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (VIT, Grid(3, 2), r"patch grids differ: .*rows=2, columns=3.* and .*rows=3, columns=2"),
        (VIT, FILM, "patch grids differ"),
        (VIT, Sequence(), "patch grids differ"),
        (FILM, Frames(1, 2, 3), "frames differ: .*times=2.*times=1"),
        (FILM, Grid(2, 3), "frames differ"),
        (Sequence(), VIT, "a text stream cannot be compared with Grid"),
        (Sequence(), Spliced(("text",)), "a text stream cannot be compared with Spliced"),
        (Spliced(("image", "text")), Spliced(("text", "image")), "spliced streams differ"),
        (Spliced(("text",)), Sequence(), "spliced streams differ"),
    ],
)
def test_what_cannot_be_compared(one: Layout, other: Layout, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        one.match(other)
