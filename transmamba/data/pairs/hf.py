"""Hugging Face `datasets` with a picture and captions in each row: on the hub, or in a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.registry import PAIRS
from ...errors import UserError
from ..images.decoding import decode_upright
from ..images.hf import (
    EncodedRows,
    check_column,
    find_image_column,
    load_splits,
    own_split,
    undecoded,
)
from ..images.source import check_split
from .captions import EMPTY, Captions, LeftOut, texts
from .source import PairSource

CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "sentences")
_ROWS = 1000  # read at once


@PAIRS.register("datasets")
@dataclass(frozen=True, kw_only=True)
class DatasetPairs:
    """A data set of the `datasets` library with an image column and a column of captions.

    Rows without a caption are left out, counted and logged.

    path:           name on the hub, or a local folder (save_to_disk, parquet files, a folder with metadata)
    config:         the data set's configuration, when it has several
    revision:       branch, tag or commit on the hub
    train_split:    name of the training split
    test_split:     name of the test split; the first of test, validation, valid, val if left out
    image_column:   detected from the column types if left out
    caption_column: with a text or a list of texts a row; one, or a list of such columns; the first of
        caption, captions, text, sentence, sentences if left out
    """

    path: str
    config: str | None = None
    revision: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    image_column: str | None = None
    caption_column: str | tuple[str, ...] | None = None

    def build(self, split: str) -> PairSource:
        """Raises UserError: `datasets` not installed, nothing found, no such split or column, no captions."""
        check_split(split)
        splits = load_splits(self.path, self.config, self.revision)
        name = own_split(self.path, splits, split, self.train_split, self.test_split)
        table, where = splits[name], f"{self.path}: {name}"
        image = self.image_column or find_image_column(table, self.path)
        spoken = self.caption_column or self._caption_column(table)
        spoken = (spoken,) if isinstance(spoken, str) else spoken
        for column in (image, *spoken):
            check_column(table, column, self.path)
        pictures = undecoded(table, image, where)
        left_out = LeftOut()
        rows, captions = _captions(table, spoken, where, left_out)
        if not len(rows):
            raise left_out.nothing(where)
        left_out.log(where)
        return TablePairs(
            table=pictures, column=image, rows=rows, where=where, skipped=left_out.total, texts=captions
        )

    def _caption_column(self, table: Any) -> str:
        for name in CAPTION_COLUMNS:
            if name in table.column_names:
                return name
        listed = ", ".join(table.column_names)
        raise UserError(f"{self.path}: which column holds captions? {listed}; write caption_column: NAME")


@dataclass(frozen=True, kw_only=True)
class TablePairs(EncodedRows):
    """Encoded pictures with captions, decoded when asked for. A `PairSource`."""

    texts: Captions

    def image(self, index: int) -> Image.Image:
        return decode_upright(*self.stored(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return self.texts.of(index)


def _captions(
    table: Any, columns: tuple[str, ...], where: str, left_out: LeftOut
) -> tuple[npt.NDArray[np.int64], Captions]:
    """The rows that have captions, and those."""
    rows: list[int] = []
    found: list[tuple[str, ...]] = []
    only = table.select_columns(list(columns))
    for start in range(0, len(table), _ROWS):
        part = only[start : start + _ROWS]
        for row, cells in enumerate(zip(*(part[column] for column in columns), strict=True), start):
            captions = tuple(text for cell in cells for text in texts(cell, f"{where}: row {row}"))
            if captions:
                rows.append(row)
                found.append(captions)
            else:
                left_out.add(EMPTY, f"row {row}")
    return np.array(rows, dtype=np.int64), Captions.pack(found)
