"""What training never sees, and what the scenes of each split are drawn from.

Held back from training: the kinds HELD_KINDS and a tenth of the emoji, one pair of colour and kind in ten (of
shapes and of digits), the style HELD_STYLES and the emoji's other style, and a fifth of the statements
(kind, relation, kind) in one of their two orders. Which they are follows from names alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ...errors import UserError
from .programs import (
    COLOURS,
    HELD_KINDS,
    HELD_STYLES,
    KINDS,
    MOST_OBJECTS,
    OPPOSITES,
    Pair,
)
from .sampling import Menu
from .stock import Stock

_BASES = ("left of", "above", "larger than")


def _coloured(kinds: Iterable[str], *, held: bool) -> tuple[Pair, ...]:
    """The pairs of a colour and one of the kinds, those that are held back or the others."""
    kinds = tuple(kinds)
    return tuple(
        (colour, kind)
        for row, colour in enumerate(COLOURS)
        for column, kind in enumerate(kinds)
        if ((row + 3 * column) % 10 == 0) == held
    )


HELD_PAIRS = _coloured(KINDS, held=True)
TRAIN_PAIRS = _coloured(KINDS, held=False)


def is_held_emoji(kind: str) -> bool:
    """Whether training never shows that emoji."""
    return zlib.crc32(kind.encode()) % 10 == 0


def is_held(kind: str, relation: str, other: str) -> bool:
    """Whether no training caption says that a `kind` is `relation` an `other`, whichever its words.

    The opposite, the same two kinds in the other order, is said in training.
    """
    if relation not in _BASES:
        kind, relation, other = other, OPPOSITES[relation], kind
    if kind == other or {kind, other} & set(HELD_KINDS):
        return False
    one, two = _rank(kind), _rank(other)
    chosen = (one + two + 2 * _BASES.index(relation)) % 5 == 0
    return chosen and (one < two) == (one * two % 2 == 0)


def _rank(kind: str) -> int:
    """A number that tells a kind from others: of a shape its place in KINDS, of a tile a hash."""
    return KINDS.index(kind) if kind in KINDS else len(KINDS) + zlib.crc32(kind.encode())


def is_seen(kind: str, relation: str, other: str) -> bool:
    """Whether training captions may say it."""
    return not is_held(kind, relation, other)


def menu(split: str, stock: Stock) -> Menu:
    """What the split's scenes are drawn from: training's menu with one thing changed.

    Raises UserError where the stock has too few kinds for a scene, or none that the split holds back.
    """
    groups = _trained(stock)
    if split == "unseen_style":
        groups = {sort: pairs for sort, pairs in groups.items() if sort in ("shapes", "emoji")}
    if sum(map(len, groups.values())) < MOST_OBJECTS:
        raise UserError(
            f"split {split!r} has {sum(map(len, groups.values()))} kinds of objects, and a scene may have "
            f"{MOST_OBJECTS}; give tiles more sorts, such as shapes: true"
        )
    usual = Menu(tuple(groups.values()), is_seen, stock.grounds, stock.filling, stock.smallest)
    if split in ("unseen_pairs", "unseen_objects"):
        return replace(usual, first=_held(split, stock))
    if split == "unseen_style":
        return replace(usual, styles=HELD_STYLES)
    if split == "swapped_relations":
        _check_held_statement(groups)
        return replace(usual, states=is_held, needs_relation=True, filling=0.0)
    return usual


def _trained(stock: Stock) -> dict[str, tuple[Pair, ...]]:
    """The pairs of training by sort."""
    kinds = stock.kinds
    found = {
        "shapes": TRAIN_PAIRS if stock.shapes else (),
        "emoji": tuple(("", kind) for kind in kinds.get("emoji", ()) if not is_held_emoji(kind)),
        "digits": _coloured(kinds.get("digits", ()), held=False),
        "pictures": tuple(("", kind) for kind in kinds.get("pictures", ())),
    }
    return {sort: pairs for sort, pairs in found.items() if pairs}


def _held(split: str, stock: Stock) -> tuple[tuple[Pair, ...], ...]:
    """The groups that the split's first objects come from."""
    kinds = stock.kinds
    if split == "unseen_pairs":
        what = "pairs of a colour with a shape or a digit"
        groups = (HELD_PAIRS if stock.shapes else (), _coloured(kinds.get("digits", ()), held=True))
    else:
        what = "shapes and emoji"
        shapes = tuple((colour, kind) for colour in COLOURS for kind in HELD_KINDS)
        emoji = tuple(("", kind) for kind in kinds.get("emoji", ()) if is_held_emoji(kind))
        groups = (shapes if stock.shapes else (), emoji)
    found = tuple(group for group in groups if group)
    if not found:
        raise UserError(f"split {split!r} shows {what} that training holds back, and tiles has neither")
    return found


def _check_held_statement(groups: Mapping[str, tuple[Pair, ...]]) -> None:
    """Raises UserError where no two of these kinds have an order that training holds back."""
    kinds = {kind for pairs in groups.values() for _, kind in pairs}
    if not any(is_held(one, base, other) for one in kinds for other in kinds for base in _BASES):
        raise UserError(
            "split 'swapped_relations' states what training holds back of two kinds, and these tiles have no "
            "such two; give tiles more sorts, such as shapes: true"
        )
