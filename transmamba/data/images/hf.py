"""Hugging Face `datasets`: a name on the hub, or a local folder (save_to_disk, parquet, image folders)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.registry import READERS
from ...errors import UserError, suggest
from .decoding import OnError, decode, undecodable
from .memory import in_memory
from .source import ImageSource, as_labels, check_split, existing

TEST_SPLITS = ("test", "validation", "valid", "val")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


@READERS.register("hf_dataset")
@dataclass(frozen=True, kw_only=True)
class HfDataset:
    """A data set of the `datasets` library with an image and a label column.

    path:         name on the hub (such as uoft-cs/cifar10) or a local folder
    config:       the data set's configuration, when it has several
    revision:     branch, tag or commit on the hub
    train_split:  name of the training split
    test_split:   name of the test split; the first labelled one of test, validation, valid, val if left out
    image_column, label_column: detected from the column types if left out
    on_error:     refuse an image that does not decode, or skip it (all are decoded once, to know which)
    cache:        ram keeps the decoded images in memory
    """

    path: str
    config: str | None = None
    revision: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    on_error: OnError = "refuse"
    cache: Literal["none", "ram"] = "none"

    def build(self, split: str) -> ImageSource:
        """Raises UserError: `datasets` not installed, nothing found, no such split or column, no labels."""
        check_split(split)
        splits = load_splits(self.path, self.config, self.revision)
        image_column = self.image_column or find_image_column(splits[next(iter(splits))], self.path)
        label_column = self.label_column or _label_column(splits[next(iter(splits))], self.path)
        for column in (image_column, label_column):
            check_column(splits[next(iter(splits))], column, self.path)
        values = {name: _column(table, label_column) for name, table in splits.items()}
        train = named_split(self.path, splits, "train_split", self.train_split)
        test = self._test_split(splits, values)
        name = train if split == "train" else test
        if name is None:
            raise UserError(
                f"{self.path}: no labelled test split among {', '.join(splits)}; write test_split: NAME"
            )
        used = [values[key] for key in (train, test) if key is not None]
        classes = _classes(splits[name].features[label_column], used, f"{self.path}: column {label_column}")
        labels = _numbers(values[name], classes, f"{self.path}: {name}: column {label_column}")
        source = _encoded(splits[name], image_column, labels, classes, f"{self.path}: {name}")
        if self.on_error == "skip":
            source = source.without(undecodable(len(source), source.image, source.identity()))
        return in_memory(source) if self.cache == "ram" else source

    @staticmethod
    def recognise(path: Path) -> HfDataset | None:
        """Of a folder that `save_to_disk` wrote, or of parquet files."""
        saved = any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
        parquet = any(any(path.glob(pattern)) for pattern in ("*.parquet", "*/*.parquet"))
        return HfDataset(path=str(path)) if saved or parquet else None

    def _test_split(self, splits: dict[str, Any], values: dict[str, npt.NDArray[Any]]) -> str | None:
        if self.test_split is not None:
            return named_split(self.path, splits, "test_split", self.test_split)
        # Competition data sets publish their test split with -1 for every label.
        labelled = (name for name in TEST_SPLITS if name in splits and not _unlabelled(values[name]))
        return next(labelled, None)


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Encoded images in an Arrow table: what all sources from there share.

    table: of `undecoded`
    rows:  (N,) int64, the row of each image in `table`
    """

    table: Any
    column: str
    rows: npt.NDArray[np.int64]
    where: str
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def stored(self, index: int) -> tuple[Path | bytes, str]:
        """An image as it is encoded, and its name. Raises UserError for a row without one."""
        row = int(self.rows[index])
        found = self.table[row][self.column] or {"bytes": None, "path": None}
        name = f"{self.where}: row {row}" + (f" ({found['path']})" if found["path"] else "")
        if found["bytes"] is None and not found["path"]:
            raise UserError(f"{name}: holds no image")
        return (found["bytes"] if found["bytes"] is not None else Path(found["path"])), name

    def array(self) -> npt.NDArray[np.uint8] | None:
        return None


@dataclass(frozen=True, kw_only=True)
class EncodedSource(EncodedRows):
    """Labelled ones, decoded when asked for. An `ImageSource`."""

    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def image(self, index: int) -> Image.Image:
        return decode(*self.stored(index))

    def without(self, broken: npt.NDArray[np.int64]) -> EncodedSource:
        keep = np.delete(np.arange(len(self)), broken)
        if not len(keep):
            raise UserError(f"{self.where}: none of its images decodes")
        return replace(self, rows=self.rows[keep], labels=self.labels[keep], skipped=len(broken))

    def identity(self) -> str:
        return f"{self.where} {self.column} {len(self)} {self.table._fingerprint}"


def _encoded(
    table: Any, column: str, labels: npt.NDArray[np.int64], classes: tuple[str, ...], where: str
) -> EncodedSource:
    return EncodedSource(
        table=undecoded(table, column, where),
        column=column,
        rows=np.arange(len(table), dtype=np.int64),
        labels=labels,
        classes=classes,
        where=where,
    )


def load_splits(path: str, config: str | None, revision: str | None) -> dict[str, Any]:
    """The splits by name of a data set on the hub or in a folder. Raises UserError: `datasets` not installed,
    nothing there, a split without a name."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"reading {path} needs datasets: pip install 'transmamba[data]'") from None
    folder = _folder(path)
    saved = folder is not None and any((folder / n).is_file() for n in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder or path), config, revision=revision)
    except Exception as error:  # whatever the hub, the network and the file formats raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{path}: cannot be loaded ({reason})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: one split without a name; save a DatasetDict with train and test")
    return dict(loaded)


def _folder(path: str) -> Path | None:
    looks_local = path.startswith(("/", "~", ".", "$"))
    if looks_local or Path(path).is_dir():
        return existing(path, "a folder saved by save_to_disk, of parquet files or of class folders")
    return None


def named_split(path: str, splits: dict[str, Any], option: str, name: str) -> str:
    """`name`, which `option` asks for. Raises UserError when there is no such split."""
    if name not in splits:
        raise UserError(f"{path}: {option} {name!r} is no split{suggest(name, splits)}")
    return name


def own_split(path: str, splits: dict[str, Any], split: str, train_split: str, test_split: str | None) -> str:
    """The data set's name of 'train' or 'test': the one that was given, of test else the first that is
    usual. Raises UserError when there is none."""
    if split == "train":
        return named_split(path, splits, "train_split", train_split)
    if test_split is not None:
        return named_split(path, splits, "test_split", test_split)
    for name in TEST_SPLITS:
        if name in splits:
            return name
    raise UserError(f"{path}: no test split among {', '.join(splits)}; write test_split: NAME")


def check_column(table: Any, column: str, path: str) -> None:
    """Raises UserError, naming those there are, when `table` has no such column."""
    if column not in table.column_names:
        raise UserError(f"{path}: no column {column!r}{suggest(column, table.column_names)}")


def undecoded(table: Any, column: str, where: str) -> Any:
    """The images of `table` alone, as they are stored. Raises UserError when the column holds no images."""
    import datasets

    if not isinstance(table.features[column], datasets.Image):
        raise UserError(f"{where}: column {column!r} holds {table.features[column]}, not images")
    # Undecoded, so that a broken picture is refused in our words, with its row.
    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def find_image_column(table: Any, path: str) -> str:
    import datasets

    found = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if len(found) != 1:
        problem = f"several image columns ({', '.join(found)})" if found else "no image column"
        raise UserError(f"{path}: {problem} among {', '.join(table.column_names)}; write image_column: NAME")
    return found[0]


def _label_column(table: Any, path: str) -> str:
    import datasets

    found = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(found) == 1:
        return found[0]
    for name in LABEL_COLUMNS:
        if name in (found or table.column_names):
            return name
    raise UserError(
        f"{path}: which column is the label? {', '.join(table.column_names)}; write label_column: NAME"
    )


def _column(table: Any, name: str) -> npt.NDArray[Any]:
    """A column's values, (N,)."""
    return np.asarray(
        table.select_columns([name]).with_format("arrow")[:].column(0).to_numpy(zero_copy_only=False)
    )


def _unlabelled(values: npt.NDArray[Any]) -> bool:
    return np.issubdtype(values.dtype, np.integer) and len(values) > 0 and bool((values < 0).all())


def _classes(feature: Any, values: list[npt.NDArray[Any]], where: str) -> tuple[str, ...]:
    names = getattr(feature, "names", None)
    if names:
        return tuple(names)
    if all(np.issubdtype(part.dtype, np.integer) for part in values):
        return tuple(str(number) for number in range(1 + max(int(part.max(initial=0)) for part in values)))
    seen = {value for part in values for value in part.tolist()}
    if not all(isinstance(value, str) for value in seen):
        raise UserError(f"{where}: labels must be whole numbers or text; found {feature}")
    return tuple(sorted(seen))


def _numbers(values: npt.NDArray[Any], classes: tuple[str, ...], where: str) -> npt.NDArray[np.int64]:
    if not len(values):
        raise UserError(f"{where}: holds no images")
    if np.issubdtype(values.dtype, np.integer):
        return as_labels(values, len(values), where)
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number[value] for value in values.tolist()], dtype=np.int64)
