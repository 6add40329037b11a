"""Which layers a sequence model has, as letters: A attention, F an MLP, M Mamba, S Mamba with S4D.

The five architectures are those of arXiv 2402.04248, whose MambaFormer is "M(AM)*n" without positions.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from ...errors import UserError

LETTERS = {"A": "attention", "F": "an MLP", "M": "Mamba", "S": "Mamba with S4D"}
Architecture = Literal["transformer", "mamba", "s4_mamba", "standard_hybrid", "mambaformer"]
ARCHITECTURES = get_args(Architecture)
_PATTERNS = {
    "transformer": "(AF)*{}",
    "mamba": "(MM)*{}",
    "s4_mamba": "(SS)*{}",
    "standard_hybrid": "(AM)*{}",
    "mambaformer": "M(AM)*{}",
}
# what positions are learnt in
_PLACED = ("transformer", "standard_hybrid")
_TOKEN = re.compile(r"\s*(?:(?P<group>\((?P<inner>[A-Z\s]*)\)|(?P<letter>[A-Z]))(?:\*(?P<times>\d+))?)")
_MOST = 512


def pattern_of(architecture: str, layers: int) -> str:
    """Of an architecture with so many pairs of layers."""
    return _PATTERNS[architecture].format(layers)


def has_positions(architecture: str) -> bool:
    return architecture in _PLACED


def parsed(pattern: str) -> str:
    """`MAMAM` of "M(AM)*2". Raises UserError for one that does not parse."""
    found, at, text = [], 0, pattern.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _no_pattern(pattern, f"nothing is known at {text[at:]!r}")
        letters = "".join((match["letter"] or match["inner"]).split())
        times = 1 if match["times"] is None else int(match["times"])
        if unknown := sorted(set(letters) - LETTERS.keys()):
            raise _no_pattern(pattern, f"{unknown[0]!r} is no layer")
        if not letters or not times:
            raise _no_pattern(pattern, f"{match[0].strip()!r} is nothing")
        found.append(letters * min(times, _MOST + 1))
        at = match.end()
    layers = "".join(found)
    if not layers:
        raise _no_pattern(pattern, "it has no layers")
    if len(layers) > _MOST:
        raise _no_pattern(pattern, f"it has more than {_MOST} layers")
    return layers


def _no_pattern(pattern: str, why: str) -> UserError:
    known = ", ".join(f"{letter} {what}" for letter, what in LETTERS.items())
    return UserError(f"pattern {pattern!r}: {why}; write letters ({known}) and repeats, such as M(AM)*6")
