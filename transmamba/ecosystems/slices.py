"""A checkpoint's tensors one by one, by name: what is not asked for is never read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from . import hub
from .damaged import damage
from .sources import Source

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class NotByName(UserError):
    """A checkpoint that cannot be read tensor by tensor under the names and shapes that the library's class
    has now: no safetensors, older names, which the library translates, or weights that do not fit."""


class Slices:
    """The tensors of a model's safetensors files, whole or in shards. Raises NotByName for none."""

    def __init__(self, source: Source) -> None:
        if source.folder is None and source.repo is None:
            raise NotByName(
                f"{source.text!r} cannot be read by slices: that needs a folder or repository of safetensors"
            )
        self.text = source.text
        self._source = source
        self._files = self._index()

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors, mapped from their files: they take memory for the pages that are read, and none once
        they are forgotten. Raises UserError for a name or a file that is not there."""
        wanted: dict[str, list[str]] = {}
        for name in names:
            if name not in self._files:
                raise UserError(f"{self.text!r} lacks {name}")
            wanted.setdefault(self._files[name], []).append(name)
        found = {}
        for file, inside in wanted.items():
            with self._opened(file) as opened:
                found.update({name: opened.get_tensor(name) for name in inside})
        return found

    def _index(self) -> Mapping[str, str]:
        """Tensor -> file."""
        repo = self._source.repo
        # a repository's whole file that is here already: no need to ask for an index
        whole = repo is not None and hub.cached(repo, _WHOLE, self._source.revision) is not None
        index = None if whole else self._find(_INDEX)
        if index is not None:
            try:
                return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.text!r}: {_INDEX} cannot be read ({error})") from error
        if self._find(_WHOLE) is None:
            raise NotByName(f"{self.text!r} has no safetensors")
        with self._opened(_WHOLE) as opened:
            return dict.fromkeys(opened.keys(), _WHOLE)

    @contextlib.contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        """Raises UserError for a file that is not whole, and for one without what the index says."""
        from safetensors import SafetensorError, safe_open

        path = self._path(file)
        try:
            with safe_open(path, framework="pt") as opened:
                yield opened
        except (SafetensorError, OSError) as error:
            raise UserError(damage(path) or f"{str(path)!r} cannot be read ({error})") from error

    def _path(self, file: str) -> Path:
        found = self._find(file)
        if found is None:
            raise UserError(f"{self.text!r} lacks its file {file}")
        return found

    def _find(self, file: str) -> Path | None:
        if self._source.folder is not None:
            path = self._source.folder / file
            return path if path.is_file() else None
        assert self._source.repo is not None, "a folder or a repository"
        return hub.fetch(self._source.repo, file, self._source.revision)
