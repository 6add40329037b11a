"""What an evaluation leaves in RUN beside its numbers: scores of items, items to look at, exhibits.

items.npz:   `index` (N,) and `student/top1` (N,), ...: each model's score of each item; `cluster` (N,) where
             some are no independent ones. Where a task has several evaluators, those after the first are
             numbered: `2/index`, `2/student/recall`, ...
samples.npz: `json`, UTF-8 bytes of {"samples": [...], "exhibits": {model: [...]}}, whose pictures and
             matrices are the arrays `picture/0`, `matrix/0`, ... that it names
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.task import Answer, Listing, Matrix, Outcome, Sample
from ..errors import UserError
from ..evaluation.measured import Measured

ITEMS_FILE, SAMPLES_FILE = "items.npz", "samples.npz"
Arrays = dict[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Items:
    """Scores (N,) of one evaluator's items by `model/metric`, the items' numbers and their clusters (N,)."""

    index: npt.NDArray[np.int64]
    scores: Mapping[str, npt.NDArray[np.float64]]
    cluster: npt.NDArray[np.int64] | None = None


def write_samples(folder: Path, measured: Measured, count: int) -> None:
    """Writes items.npz, and samples.npz with at most `count` samples of each evaluator and all exhibits."""
    shown = exhibits_of(measured)
    _save(Path(folder) / SAMPLES_FILE, packed(measured.samples(count), shown))
    _save(Path(folder) / ITEMS_FILE, _scores(measured.outcomes))


def exhibits_of(measured: Measured) -> dict[str, list[Matrix | Listing]]:
    """All exhibits, by model."""
    found: dict[str, list[Matrix | Listing]] = {}
    for outcomes in measured.outcomes:
        for name, outcome in outcomes.items():
            found.setdefault(name, []).extend(outcome.exhibits)
    return found


def read_items(path: Path) -> list[Items]:
    """Of each evaluator that scored items. Raises UserError for a damaged file."""
    groups: dict[str, Arrays] = {}
    for key, array in read_arrays(path).items():
        number, _, rest = key.partition("/")
        group, name = (number, rest) if number.isdigit() else ("1", key)
        groups.setdefault(group, {})[name] = array
    return [
        Items(arrays.pop("index"), cluster=arrays.pop("cluster", None), scores=arrays)
        for _, arrays in sorted(groups.items(), key=lambda group: int(group[0]))
        if "index" in arrays
    ]


def unpacked(arrays: Mapping[str, Any]) -> tuple[list[Sample], dict[str, list[Matrix | Listing]]]:
    """Samples, and exhibits by model: the inverse of `packed`."""
    content = json.loads(arrays["json"].tobytes().decode("utf-8"))
    samples = []
    for row in content["samples"]:
        answers = tuple(Answer(**answer) for answer in row.pop("answers"))
        picture = row.pop("picture", None)
        samples.append(Sample(**row, answers=answers, picture=None if picture is None else arrays[picture]))
    exhibits = {
        name: [_exhibit(row, arrays) for row in rows] for name, rows in content.get("exhibits", {}).items()
    }
    return samples, exhibits


def packed(samples: Sequence[Sample], exhibits: Mapping[str, Sequence[Matrix | Listing]]) -> Arrays:
    """As arrays that need no pickle."""
    arrays: Arrays = {}

    def kept(kind: str, array: npt.NDArray[Any]) -> str:
        name = f"{kind}/{sum(key.startswith(kind) for key in arrays)}"
        arrays[name] = array
        return name

    rows = []
    for sample in samples:
        row = {"group": sample.group, "label": sample.label, "text": sample.text}
        said = [dataclasses.asdict(answer) for answer in sample.answers]
        shown = {} if sample.picture is None else {"picture": kept("picture", sample.picture)}
        rows.append({**row, "answers": said, **shown})
    content = {
        "samples": rows,
        "exhibits": {
            name: [
                vars(each) | {"kind": "listing"}
                if isinstance(each, Listing)
                else vars(each) | {"kind": "matrix", "values": kept("matrix", each.values)}
                for each in shown
            ]
            for name, shown in exhibits.items()
        },
    }
    text = json.dumps(content, default=_plain).encode("utf-8")
    return {"json": np.frombuffer(text, dtype=np.uint8), **arrays}


def _plain(value: Any) -> Any:
    """What JSON has no word for: a number of numpy's, a sequence."""
    return np.asarray(value).tolist()


def read_arrays(path: Path) -> Arrays:
    """What an .npz holds; nothing where there is none. Raises UserError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); delete it, or evaluate again") from None


def _exhibit(row: dict[str, Any], arrays: Mapping[str, Any]) -> Matrix | Listing:
    kind = row.pop("kind")
    return Listing(**row) if kind == "listing" else Matrix(**row | {"values": arrays[row["values"]]})


def _scores(outcomes: Sequence[Mapping[str, Outcome]]) -> Arrays:
    return {key: array for number, by_model in enumerate(outcomes, 1) for key, array in _of(number, by_model)}


def _of(number: int, outcomes: Mapping[str, Outcome]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """One evaluator's arrays; its models were measured on the same items."""
    prefix = "" if number == 1 else f"{number}/"
    for name, outcome in outcomes.items():
        if outcome.index is None:
            continue
        yield f"{prefix}index", outcome.index
        if outcome.cluster is not None:
            yield f"{prefix}cluster", outcome.cluster
        for key, scores in outcome.items.items():
            yield f"{prefix}{name}/{key}", scores


def _save(path: Path, arrays: Arrays) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    partial.replace(path)
