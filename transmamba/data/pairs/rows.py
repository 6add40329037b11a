"""Rows of csv, tsv, jsonl, json and parquet files, each a mapping from its columns' names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from ...errors import UserError, suggest

Row = Mapping[str, Any]
Columns = Sequence[str]

_LONGEST = 2**24  # characters of a field in a csv file; Python's own limit is 131,072


def rows(file: IO[bytes], suffix: str, columns: Columns, where: str) -> Iterator[tuple[str, Row]]:
    """(where the row stands, the row) of a file of one of the suffixes KINDS.

    columns: those that are wanted; rows may hold others
    Raises UserError, with `where`: a column that is missing, a damaged line, an unknown suffix.
    """
    if suffix not in KINDS:
        raise UserError(f"{where}: unknown suffix {suffix!r}; expected one of {', '.join(KINDS)}")
    try:
        yield from KINDS[suffix](file, columns, where)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not in UTF-8 ({error.reason} at byte {error.start})") from None


def _csv(file: IO[bytes], columns: Columns, where: str, delimiter: str = ",") -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    # strict, or a quotation mark that is not closed would swallow the lines after it
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _need(columns, header, where)
        for values in reader:
            if not values:  # an empty line
                continue
            if len(values) != len(header):
                raise UserError(
                    f"{where}: line {reader.line_num} has {len(values)} fields, the header {len(header)}; "
                    f"put quotation marks around a text with {delimiter!r} in it"
                )
            yield f"line {reader.line_num}", dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{where}: line {reader.line_num} is no line of a table ({error}); a text with quotation marks "
            "in it stands between quotation marks, with its own doubled"
        ) from None


def _tsv(file: IO[bytes], columns: Columns, where: str) -> Iterator[tuple[str, Row]]:
    return _csv(file, columns, where, "\t")


def _jsonl(file: IO[bytes], columns: Columns, where: str) -> Iterator[tuple[str, Row]]:
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
    records = ((f"line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
    return _records(((line, _parsed(text, f"{where}: {line}")) for line, text in records), columns, where)


def _json(file: IO[bytes], columns: Columns, where: str) -> Iterator[tuple[str, Row]]:
    found = _parsed(io.TextIOWrapper(file, encoding="utf-8-sig").read(), where)
    if not isinstance(found, list):
        raise UserError(f"{where}: {_kind(found)}; expected a list of objects with {', '.join(columns)}")
    return _records(((f"record {n}", record) for n, record in enumerate(found)), columns, where)


def _records(found: Iterator[tuple[str, Any]], columns: Columns, where: str) -> Iterator[tuple[str, Row]]:
    """A record may leave a key out, but no key may be left out by all."""
    seen: dict[str, None] = {}
    for line, record in found:
        if not isinstance(record, dict):
            raise UserError(f"{where}: {line} is {_kind(record)}; expected an object")
        seen |= dict.fromkeys(record)
        yield line, record
    _need(columns, list(seen), where)


def _parquet(file: IO[bytes], columns: Columns, where: str) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{where}: parquet needs pyarrow: pip install 'transmamba[data]'") from None
    try:
        table = parquet.ParquetFile(file)
        _need(columns, table.schema_arrow.names, where)
        number = 0
        for batch in table.iter_batches(columns=list(columns)):
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{where} cannot be read ({str(error).splitlines()[0]})") from None


KINDS: Mapping[str, Callable[[IO[bytes], Columns, str], Iterator[tuple[str, Row]]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}


def _need(columns: Columns, found: Sequence[str], where: str) -> None:
    for column in columns:
        if column not in found:
            raise UserError(f"{where}: no column {column!r}{suggest(column, found)}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error})") from None


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
    return names.get(type(value), repr(value))
