"""The models that open_clip knows by name, read from its files: importing it takes more than a second."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from ..errors import UserError, suggest

_LIKELY = 0.75  # how alike two names are where one is meant
_FOLDER = "model_configs"
_INSTALL = "pip install 'transmamba[clip]'"
_BEGINNINGS = ("ViT-", "RN50", "RN101", "EVA0", "coca_", "MobileCLIP", "PE-", "roberta-ViT", "xlm-roberta-")


def installed() -> bool:
    return importlib.util.find_spec("open_clip") is not None


def require(text: str) -> None:
    """Raises UserError where open_clip is missing."""
    if not installed():
        raise UserError(f"{text!r} needs open_clip: {_INSTALL}")


def names() -> frozenset[str]:
    """`ViT-B-32` and the like; none where open_clip is not installed."""
    spec = importlib.util.find_spec("open_clip")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return frozenset(path.stem for folder in folders for path in (Path(folder) / _FOLDER).glob("*.json"))


def split(text: str) -> tuple[str, str | None]:
    """NAME and TAG of `NAME/TAG`."""
    name, _, tag = text.partition("/")
    return name, tag or None


def check_name(text: str, listed: str) -> None:
    """Raises UserError for a NAME or NAME/TAG that open_clip does not list, with the nearest that it does."""
    require(text)
    if split(listed)[0] not in names():
        hint = nearest(listed) or suggest(split(listed)[0], names())
        raise UserError(f"{text!r}: open_clip has no model {split(listed)[0]!r}{hint}")


def nearest(text: str) -> str:
    """`; did you mean 'ViT-B-32/openai' of open_clip?`, or nothing; what to install where it is missing."""
    known = names()
    if not known and text.startswith(_BEGINNINGS):
        return f"; open_clip's names need it: {_INSTALL}"
    name, tag = split(text)
    for whole, rest in ((text.replace("/", "-"), None), (name, tag)):
        close = difflib.get_close_matches(whole, known, n=1, cutoff=_LIKELY)
        if close:
            return f"; did you mean {close[0] + (f'/{rest}' if rest else '')!r} of open_clip?"
    return ""
