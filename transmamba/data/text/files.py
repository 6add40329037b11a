"""Files of texts as they lie: compressed or not, plain lines or the rows of a table."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from ...errors import UserError
from ..pairs.files import expand, is_remote, opened, size_and_stamp
from ..pairs.rows import KINDS, Row, rows

PLAIN = (".txt", ".text", ".md")
TABLES = tuple(KINDS)


def _zstandard(file: IO[bytes]) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise UserError("files that end in .zst need zstandard: pip install zstandard") from None
    return cast(IO[bytes], zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))


_COMPRESSED: Mapping[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": gzip.open,  # type: ignore[dict-item]
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _zstandard,
}
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


def kind_of(path: str) -> tuple[str, str]:
    """(what a file holds, how it is compressed) by its suffixes: `.jsonl`, `.xz`."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSED else ""
    return (suffixes[-1] if suffixes else ""), packed


def found_files(patterns: str | Sequence[str], kinds: Sequence[str]) -> tuple[str, ...]:
    """The files of these kinds that patterns name. Raises UserError for one that is not there, or of another
    kind."""
    files = expand(patterns)
    for path in files:
        if not is_remote(path) and Path(path).is_dir():
            raise UserError(f"{path} is a folder; write its files, such as {path.rstrip('/')}/*.jsonl")
        kind, packed = kind_of(path)
        if kind not in kinds or (kind == ".parquet" and packed):
            raise UserError(
                f"{path}: unknown suffix {kind + packed!r}; expected one of {', '.join(kinds)}, or such a "
                f"file compressed ({', '.join(_COMPRESSED)})"
            )
    return tuple(files)


def shortly(files: Sequence[str]) -> str:
    """The first, and how many more."""
    return files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def stamp_of(files: Sequence[str], *options: object) -> str:
    """What changes when a file is written anew, or read otherwise."""
    there = [path if is_remote(path) else str(Path(path).resolve()) for path in files]
    stamps = [[path, *size_and_stamp(file)] for path, file in zip(there, files, strict=True)]
    return json.dumps([stamps, options])


@contextmanager
def unpacked(path: str) -> Iterator[IO[bytes]]:
    """The file as it was before it was compressed. Raises UserError when it cannot be read."""
    packed = kind_of(path)[1]
    with opened(path) as file:
        if not packed:
            yield file
            return
        try:
            yield _COMPRESSED[packed](file)
        except _DAMAGED as error:
            raise UserError(f"{path}: is damaged or cut short ({error or type(error).__name__})") from None


def table_rows(path: str, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """(where the row stands, the row) of a table. Raises UserError as `pairs.rows.rows` does."""
    with unpacked(path) as file:
        for line, row in rows(file, kind_of(path)[0], columns, path):
            yield f"{path}: {line}", row


def plain_texts(path: str, between: re.Pattern[str] | None, keep: bool) -> Iterator[tuple[str, str]]:
    """(where it begins, the text) of each document of a plain file.

    between: matches the line that stands between two documents; None for a file that is one
    keep:    whether that line is the first of the document behind it

    Raises UserError for a line that is not in UTF-8.
    """
    lines: list[str] = []
    begun = 1
    with unpacked(path) as file:
        for number, line in enumerate(_lines(file, path), 1):
            if between is not None and between.fullmatch(line.rstrip("\r\n")):
                yield f"{path}: line {begun}", "".join(lines)
                lines, begun = ([line] if keep else []), number
            else:
                lines.append(line)
    yield f"{path}: line {begun}", "".join(lines)


def _lines(file: IO[bytes], path: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: line {number} is not in UTF-8 ({error.reason} at its byte {error.start})"
            ) from None
