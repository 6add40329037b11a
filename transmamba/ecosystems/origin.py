"""Where weights come from: the licence and the repository that whoever takes them has to name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from . import hub
from .sources import Source, read_source

_CARD = "README.md"


@dataclass(frozen=True)
class Origin:
    """licence: as the Hub writes it; base_model: a repository on the Hub. None where nothing says so."""

    licence: str | None = None
    base_model: str | None = None


def origin_of(source: Source) -> Origin:
    """What the model card of a folder says; of a repository on the Hub, its licence and itself."""
    if source.folder is not None:
        return origin_of_folder(source.folder)
    if source.repo is None:
        return Origin()
    try:
        card = hub.fetch(source.repo, _CARD, source.revision)
    except UserError:  # nothing known is no reason to stop
        card = None
    return Origin(_front_matter(card)[0], source.repo)


def origin_by_name(name: str, revision: str | None = None) -> Origin:
    """The same of a name; nothing of one that cannot be asked, since that is no reason to stop."""
    try:
        return origin_of(read_source(name, revision=revision))
    except UserError:
        return Origin()


def origin_in_hand(name: str) -> Origin:
    """Of what was loaded from a folder or an id, without a network."""
    if not name:
        return Origin()
    if Path(name).is_dir():
        return origin_of_folder(Path(name))
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return Origin()
    return Origin(_front_matter(hub.cached(name, _CARD))[0], name)


def origin_of_folder(folder: Path) -> Origin:
    """What the front matter of its README.md says."""
    return Origin(*_front_matter(folder / _CARD))


def _front_matter(card: Path | None) -> tuple[str | None, str | None]:
    """`license` and `base_model` of a model card; None for what is not there or not to be read."""
    if card is None or not card.is_file():
        return None, None
    text = card.read_text(encoding="utf-8", errors="replace")
    begins, *rest = text.split("\n---", 1)
    if not begins.startswith("---") or not rest:
        return None, None
    try:
        values = yaml.safe_load(begins[3:])
    except yaml.YAMLError:
        return None, None
    if not isinstance(values, dict):
        return None, None
    return _text(values.get("license")), _text(values.get("base_model"))


def _text(value: Any) -> str | None:
    """One of what may be a list."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, str) and first else None
