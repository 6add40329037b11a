"""What a user's name of a model stands for, before any weights: a folder, a file, a repository, a name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, near
from . import hub, open_clip_names
from .folders import OPEN_CLIP_CONFIG, model_folder, names_a_model, no_model_in, read_model_config

GGUF = ".gguf"
WEIGHTS = (".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".tar", GGUF)
# repositories of this owner are timm's, whatever is in them; those with capitals are open_clip's
_TIMM = "timm/"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of `folder`, `file`, `repo` and `open_clip`, or a bare name.

    text:         as the user wrote it
    folder:       holds config.json or open_clip_config.json
    file:         of weights alone
    repo:         OWNER/NAME on the Hugging Face Hub, at `revision`
    open_clip:    NAME or NAME/TAG of open_clip's own list
    config:       what config.json or open_clip_config.json says; empty for a file, a name and what is timm's
        by its owner
    architecture: the timm name of the model whose weights a file holds
    """

    text: str
    folder: Path | None = None
    file: Path | None = None
    repo: str | None = None
    revision: str | None = None
    open_clip: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    architecture: str | None = None

    @property
    def bare(self) -> bool:
        return all(each is None for each in (self.folder, self.file, self.repo, self.open_clip))


def read_source(text: str, architecture: str | None = None, revision: str | None = None) -> Source:
    """Raises UserError for a path where nothing is, a prefix that nobody knows, and a repository that cannot
    be asked for its config.json."""
    path = Path(text).expanduser()
    if text and path.is_file():
        if architecture is not None and path.suffix.lower() == GGUF:
            raise UserError(f"{text!r} says its own architecture; leave out {architecture!r}")
        return Source(text=text, file=path, architecture=architecture)
    if architecture is not None:
        if path.suffix in WEIGHTS and not path.exists():
            raise UserError(f"{text!r}: no such file")
        raise UserError(f"{text!r} is no file of weights; an architecture goes with one, leave it out")
    if text and (model_folder(path) is not None or (path.is_dir() and "/" in text)):
        return _folder(text, path)
    prefix, colon, rest = text.partition(":")
    kind = prefix.lower().replace("_", "-")
    if colon and kind == "hf-hub":
        return _repository(text, rest, revision)
    if colon and kind == "local-dir":
        return _folder(text, Path(rest))
    if colon and kind == "open-clip":
        open_clip_names.check_name(text, rest)
        return Source(text=text, open_clip=rest)
    if colon and re.fullmatch(r"[\w.+-]{2,}", prefix):
        raise UserError(
            f"{text!r}: nothing begins with {prefix}: here; write a folder, a timm name, hf-hub:OWNER/NAME "
            "or open_clip:NAME/TAG"
        )
    if path.suffix in WEIGHTS:
        raise UserError(f"{text!r}: no such file")
    if text.count("/") == 1 and open_clip_names.split(text)[0] in open_clip_names.names():
        return Source(text=text, open_clip=text)
    if text.count("/") > 1 or text.startswith((".", "/", "~")) or "\\" in text:
        raise UserError(f"{text!r}: no such folder{_nearest(text)}; write one that holds config.json")
    return _repository(text, text, revision) if "/" in text else Source(text=text)


def _folder(text: str, path: Path) -> Source:
    folder = model_folder(path)
    if folder is None:
        here = path.expanduser()
        said = no_model_in(here) if here.is_dir() else "no such folder; write a run or model folder"
        raise UserError(f"{text!r}: {said}")
    return Source(text=text, folder=folder, config=read_model_config(folder))


def _repository(text: str, name: str, revision: str | None) -> Source:
    repo, _, tagged = name.partition("@")
    revision = revision or tagged or None
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UserError(f"{text!r}: {repo!r} is no repository on the Hugging Face Hub; those are OWNER/NAME")
    if repo.startswith(_TIMM) and repo == repo.lower():
        return Source(text=text, repo=repo, revision=revision)
    try:
        config = _fetch(repo, "config.json", revision)
        if not names_a_model(config):
            config = _fetch(repo, OPEN_CLIP_CONFIG, revision) or config
    except UserError as error:
        hint = _nearest(text) or open_clip_names.nearest(text)
        nowhere = f"{text!r} is no folder here{hint}, and as an id of the Hub"
        what = f"{text!r}" if ":" in text else nowhere
        raise UserError(f"{what}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{text!r}: its config.json cannot be read as JSON ({error})") from error
    return Source(text=text, repo=repo, revision=revision, config=config)


def _fetch(repo: str, name: str, revision: str | None) -> dict[str, Any]:
    """What a JSON file of a repository says; empty where there is none."""
    found = hub.fetch(repo, name, revision)
    config = {} if found is None else json.loads(found.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{name} is no object")
    return config


def _nearest(text: str) -> str:
    """` (did you mean 'runs/digits'?)`, where the first part of a misspelt path is a folder."""
    meant = nearest_folder(Path(text).expanduser())
    return f" (did you mean {str(meant)!r}?)" if meant else ""


def nearest_folder(path: Path) -> Path | None:
    """The folder beside a misspelt path that was perhaps meant."""
    if not path.parent.is_dir():
        return None
    return near(path, [entry.name for entry in path.parent.iterdir() if entry.is_dir()])
