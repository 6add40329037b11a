"""Small data sets of pairs in every layout that a reader knows, from the same pictures and captions."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Content = Mapping[str, tuple[bytes, tuple[str, ...]]]  # file name -> the encoded picture and its captions
SPLITS = ("train", "test")


def pixels(seed: int, height: int = 6, width: int = 8, channels: int = 3) -> np.ndarray:
    """(height, width, channels) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format=kind, **options)
    return file.getvalue()


def plain(split: str, count: int = 6) -> Content:
    """count pictures with one caption and with two in turn."""
    first = 100 * SPLITS.index(split)
    return {
        f"p{number}.png": (
            encoded(pixels(first + number)),
            tuple(f"{split} picture {number}, wording {k}" for k in range(1 + number % 2)),
        )
        for number in range(count)
    }


def write_pictures(folder: Path, content: Content) -> None:
    for name, (picture, _) in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture)


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def samples(content: Content) -> list[tuple[str, bytes]]:
    """What a shard of it holds."""
    return [
        file
        for name, (picture, captions) in content.items()
        for file in ((name, picture), (f"{name.split('.')[0]}.txt", "\n".join(captions).encode()))
    ]


def table(place: Path, content: Mapping[str, Content]) -> dict[str, Any]:
    for split, pairs in content.items():
        write_pictures(place / split, pairs)
        with (place / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "caption"])
            writer.writerows(
                (f"{split}/{name}", caption) for name, (_, captions) in pairs.items() for caption in captions
            )
    return {split: str(place / f"{split}.csv") for split in content}


def coco(place: Path, content: Mapping[str, Content]) -> dict[str, Any]:
    options = {"root": str(place)}
    for split, pairs in content.items():
        write_pictures(place / f"{split}_pictures", pairs)
        images = [{"id": 7 * n, "file_name": name} for n, name in enumerate(pairs)]
        annotations = [
            {"id": 0, "image_id": 7 * n, "caption": caption}
            for n, (_, captions) in enumerate(pairs.values())
            for caption in captions
        ]
        (place / f"{split}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        options |= {split: f"{split}.json", f"{split}_images": f"{split}_pictures"}
    return options


def karpathy(place: Path, content: Mapping[str, Content]) -> dict[str, Any]:
    images = []
    for split, pairs in content.items():
        write_pictures(place / split, pairs)
        images += [
            {
                "filepath": split,
                "filename": name,
                "split": split,
                "sentences": [{"raw": text, "tokens": []} for text in captions],
            }
            for name, (_, captions) in pairs.items()
        ]
    (place / "dataset.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    return {"captions": str(place / "dataset.json"), "images": str(place)}


def shards(place: Path, content: Mapping[str, Content]) -> dict[str, Any]:
    for split, pairs in content.items():
        files = samples(pairs)
        half = 2 * (len(pairs) // 2)
        write_tar(place / f"{split}-000.tar", files[:half])
        write_tar(place / f"{split}-001.tar", files[half:])
    return {split: str(place / f"{split}-{{000..001}}.tar") for split in content}


def saved(place: Path, content: Mapping[str, Content]) -> dict[str, Any]:
    datasets = pytest.importorskip("datasets", reason="needs pip install 'transmamba[data]'")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Sequence(datasets.Value("string"))}
    )
    tables = {}
    for split, pairs in content.items():
        columns = {
            "image": [{"bytes": picture, "path": name} for name, (picture, _) in pairs.items()],
            "caption": [list(captions) for _, captions in pairs.values()],
        }
        tables[split] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(tables).save_to_disk(str(place))
    return {"path": str(place)}


def folders(place: Path, content: Mapping[str, Content]) -> dict[str, Any]:
    for split, pairs in content.items():
        write_pictures(place / split, pairs)
    return {split: str(place / split) for split in content}


# Every reader of files, by its name in the registry.
LAYOUTS: dict[str, Callable[[Path, Mapping[str, Content]], dict[str, Any]]] = {
    "coco": coco,
    "datasets": saved,
    "flickr": karpathy,
    "pictures": folders,
    "table": table,
    "webdataset": shards,
}
