"""Files here and far away: those that a pattern names, how they are told from later ones, parts of them."""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from ...errors import UserError
from ..images.source import existing, unset_in

T = TypeVar("T")

_BRACES = re.compile(r"\{([^{}]*)\}")
_SPAN = re.compile(r"(\d+)\.\.(\d+)")
_PAUSES = (1.0, 5.0)  # seconds before a remote file is asked for again
# What tells a file from a later one of its size, under the names that the file systems of fsspec give it.
_CHANGES = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "created")


def is_remote(path: str) -> bool:
    return "://" in path


def expand(patterns: str | Sequence[str]) -> list[str]:
    """The files that patterns name: `~`, `$VARIABLE`, `{0000..0123}`, `{a,b}`, and `*`, whose files are
    sorted. Raises UserError when one names nothing."""
    found: list[str] = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        for path in braces(os.path.expandvars(pattern)):
            found += _matching(path)
    return found


def braces(pattern: str) -> list[str]:
    """A pattern with each `{first..last}` and `{one,other}` filled in, as shells do it."""
    match = _BRACES.search(pattern)
    if match is None and "{" not in pattern:
        return [pattern]
    options: list[str] = []
    if match is not None and "{" not in pattern[: match.start()]:  # none within others
        options = match[1].split(",") if "," in match[1] else []
        if span := _SPAN.fullmatch(match[1]):
            width = max(map(len, span.groups())) if any(n.startswith("0") for n in span.groups()) else 0
            options = [f"{n:0{width}d}" for n in range(int(span[1]), int(span[2]) + 1)]
    if match is None or not options:
        part = match[0] if match is not None else pattern[pattern.index("{") :]
        raise UserError(f"{pattern}: {part} names nothing; write {{0000..0123}} or {{a,b}}")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [filled for option in options for filled in braces(before + option + after)]


def _matching(path: str) -> list[str]:
    if is_remote(path):
        found = _remote(path, _listed) if "*" in path else [path]
    else:
        local = str(Path(path).expanduser())
        whole = not glob.has_magic(local) or Path(local).exists()
        found = [local] if whole else sorted(glob.glob(local, recursive=True))  # noqa: PTH207
    if not found:
        raise UserError(f"{path}: there is no such file{unset_in(path)}")
    return found


def _listed(system: Any, inside: str) -> list[str]:
    return sorted(system.unstrip_protocol(name) for name in system.glob(inside))


def size_and_stamp(path: str) -> tuple[int, str]:
    """The size of a file in bytes, and what changes when it is written anew. Raises UserError when it is not
    there."""
    if not is_remote(path):
        status = existing(path, "a file").stat()
        return status.st_size, str(status.st_mtime_ns)
    info = _remote(path, lambda system, inside: system.info(inside))
    stamp = next((str(info[name]) for name in _CHANGES if info.get(name)), "")
    if info.get("size") is None:
        raise UserError(
            f"{path}: its server does not say how large it is; copy it to where it can be sought in"
        )
    return int(info["size"]), stamp


def opened(path: str) -> AbstractContextManager[IO[bytes]]:
    """A file to read and to seek in. Raises UserError when it cannot be opened."""
    if is_remote(path):
        return cast(
            AbstractContextManager[IO[bytes]], _remote(path, lambda system, name: system.open(name, "rb"))
        )
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def read(path: str, offset: int, size: int) -> bytes:
    """A part of a file. Raises UserError when the file cannot be read or has less.

    Opened anew for each part: neither forked workers nor threads share a place in it then.
    """
    if is_remote(path):
        content = _remote(path, lambda system, name: system.cat_file(name, start=offset, end=offset + size))
    else:
        try:
            with Path(path).open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if len(content) != size:
        raise UserError(f"{path}: {len(content)} bytes at {offset} in place of {size}; was it changed?")
    return content


def _remote(path: str, ask: Callable[[Any, str], T]) -> T:
    """`ask` of fsspec's file system for `path` and the name in there, and again after a pause if it fails."""
    from fsspec.core import url_to_fs

    for pause in (*_PAUSES, None):
        try:
            # fsspec keeps a file system for each process, so that a forked worker gets its own
            return ask(*url_to_fs(path))
        except (ImportError, ValueError) as error:  # no such protocol, or its package is not installed
            raise UserError(f"{path}: {_line(error)}") from None
        except FileNotFoundError:
            raise UserError(f"{path} does not exist") from None
        except Exception as error:  # what clients of stores raise is theirs: OSError, botocore's, aiohttp's
            if pause is None:
                raise UserError(f"{path} cannot be read ({_line(error)})") from error
            time.sleep(pause)
    raise AssertionError("the last pause is None")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
