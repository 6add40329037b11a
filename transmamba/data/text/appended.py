"""A .jsonl that is written in parts, over several calls if need be: what an interrupted one leaves is gone on
with, and nobody takes it for whole.

OUT.jsonl.xz is there when all of it is; before that its lines lie in OUT.jsonl.xz.partial. Beside both lies
OUT.jsonl.xz.about.json: of what they are made, and how far.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import importlib.util
import json
import lzma
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from ...errors import UserError
from ..cache import write_whole
from .files import kind_of

_VERSION = 1
_LINES = (".jsonl", ".ndjson")


def _gzip(file: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile("", "wb", fileobj=file, mtime=0))  # no time: the same bytes again


def _zstandard(file: IO[bytes]) -> IO[bytes]:
    import zstandard

    return cast(IO[bytes], zstandard.ZstdCompressor().stream_writer(file, closefd=False))


_PACKED: Mapping[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": _gzip,
    ".xz": functools.partial(lzma.open, mode="wb"),
    ".bz2": functools.partial(bz2.open, mode="wb"),
    ".zst": _zstandard,
}


class Appended:
    """Records of JSON, one a line, in parts of a fixed division.

    path: what is written
    made: of what: plain values that another call must have too, to go on here
    counts: of what was written so far, by kind
    """

    def __init__(self, path: Path, made: Mapping[str, Any]) -> None:
        """Raises UserError for a file that is of something else, naming what differs, or that another process
        is writing."""
        check_place(path)
        self.path, self.made = path, {"version": _VERSION, **made}
        self.partial = path.with_name(f"{path.name}.partial")
        self.about = about_of(path)
        self.parts, self.counts, self.finished = 0, dict[str, int](), False
        self._bytes = 0
        found = read_about(path)
        if found is not None:
            self._check(found)
            self._go_on(found)
        elif path.exists():
            raise UserError(
                f"{path} is there already, and nothing beside it says of what; write another name"
            )

    def _check(self, found: Mapping[str, Any]) -> None:
        theirs = found["made"]
        unlike = [key for key in {**theirs, **self.made} if theirs.get(key) != self.made.get(key)]
        if unlike:
            said = "; ".join(f"{key} {theirs.get(key)!r}, not {self.made.get(key)!r}" for key in unlike)
            raise UserError(f"{self.path} was begun with {said}; write another name, or remove it")

    def _go_on(self, found: Mapping[str, Any]) -> None:
        if found["finished"] and self.path.is_file():
            if self.path.stat().st_size != found["size"]:
                raise UserError(
                    f"{self.path} is not what was written there; remove it, and it is written again"
                )
            self.finished = True
        elif found["finished"] or not found["bytes"]:
            return  # removed since, or just begun: all is written anew
        elif not self.partial.is_file() or self.partial.stat().st_size < found["bytes"]:
            raise UserError(
                f"{self.partial} is damaged or gone, so that {self.path} cannot be gone on with; remove "
                f"{self.about}, and it is begun anew"
            )
        self.parts, self._bytes, self.counts = found["parts"], found["bytes"], dict(found["counts"])

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[Sequence[Mapping[str, Any]], Mapping[str, int]], None]]:
        """What takes the next part: its records, and what to add to `counts`. What was torn is cut off first.
        Raises UserError where another process writes the same."""
        assert not self.finished, "nothing is left to write"
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        with self.partial.open("ab") as file:
            _lock(file, self.path)
            file.truncate(self._bytes)
            file.seek(0, os.SEEK_END)
            self._say()

            def add(records: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> None:
                lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())  # before it is said to be there
                self.parts, self._bytes = self.parts + 1, file.tell()
                self.counts = {k: self.counts.get(k, 0) + counts.get(k, 0) for k in {**self.counts, **counts}}
                self._say()

            yield add

    def finish(self) -> None:
        """All parts are there: they become the file, compressed as its name says."""
        whole = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        pack = _PACKED.get(kind_of(self.path.name)[1])
        try:
            with self.partial.open("rb") as lines, whole.open("wb") as file:
                if pack is None:
                    shutil.copyfileobj(lines, file)
                else:
                    with pack(file) as packed:
                        shutil.copyfileobj(lines, packed)
                file.flush()
                os.fsync(file.fileno())
            whole.replace(self.path)
        finally:
            whole.unlink(missing_ok=True)
        self.finished = True
        self._say(size=self.path.stat().st_size)
        self.partial.unlink()

    def _say(self, **more: int) -> None:
        said = {"made": self.made, "parts": self.parts, "bytes": self._bytes, "counts": self.counts}
        text = json.dumps({**said, "finished": self.finished, **more}, indent=1, ensure_ascii=False)
        write_whole(self.about, f"{text}\n".encode())


def about_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.about.json")


def read_about(path: Path) -> dict[str, Any] | None:
    """What lies beside a file that was written so; None for nothing. Raises UserError for something else."""
    about = about_of(path)
    if not about.exists():
        return None
    try:
        found = json.loads(about.read_text(encoding="utf-8"))
        known = isinstance(found["made"], dict) and {"parts", "bytes", "counts", "finished"} <= found.keys()
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{about} is damaged, so that {path} cannot be gone on with; remove both")
    return dict(found)


def check_place(path: Path) -> None:
    """Raises UserError for a name that is no .jsonl, compressed or not."""
    kind, packed = kind_of(path.name)
    if kind not in _LINES or path.is_dir():
        raise UserError(
            f"{path}: write a file that ends in .jsonl, or {', '.join(f'.jsonl{p}' for p in _PACKED)}"
        )
    if packed == ".zst" and importlib.util.find_spec("zstandard") is None:
        raise UserError("files that end in .zst need zstandard: pip install zstandard")


def _lock(file: IO[bytes], path: Path) -> None:
    """Held until the file is closed. Nothing where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{path} is being written by another process; wait for it, or write another name"
        ) from None
    except OSError:  # a file system without
        return
