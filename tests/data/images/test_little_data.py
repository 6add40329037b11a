"""Readers for tasks of little data: a few of another's images, records with classes, drawn scenes."""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from transmamba.config.load import Part
from transmamba.config.registry import READERS
from transmamba.data.images.few import Few
from transmamba.data.images.records import Records
from transmamba.data.images.scene_classes import CLASSES, SceneClasses, ScenesOf
from transmamba.errors import UserError, WrongValues
from transmamba.evaluation.logistic import fit

ROOT = Path(__file__).parents[3]

# --- a few images ---


def test_the_few_are_pictures_of_their_reader_and_always_the_same() -> None:
    data = READERS["synthetic"](num_train=50, num_test=20, num_classes=5, size=8)
    few, again, other = (Few(data=data, train=12, test=None, side=8, seed=seed) for seed in (0, 0, 1))
    source, whole = few.build("train"), data.build("train")
    found = [np.flatnonzero((whole.array() == picture).all((1, 2, 3))) for picture in source.array()]
    assert [len(numbers) for numbers in found] == [1] * 12
    numbers = np.concatenate(found)
    assert np.all(np.diff(numbers) > 0) and np.array_equal(whole.labels[numbers], source.labels)
    assert np.array_equal(source.array(), again.build("train").array())
    assert not np.array_equal(source.array(), other.build("train").array())
    assert len(few.build("test")) == 20


def test_pictures_are_squeezed_and_stand_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 8), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 4, 4))
    for split in ("train", "test"):
        (tmp_path / split / "one").mkdir(parents=True)
        clear.save(tmp_path / split / "one" / "a.png")
    few = Few(data=READERS["image_folder"](root=str(tmp_path)), train=1, test=1, side=16)
    pixels = few.build("train").array()[0]
    assert pixels.shape == (16, 16, 3)
    assert pixels[3, 8].tolist() == [0, 0, 255] and pixels[13, 8].tolist() == [255, 255, 255]


def test_what_is_kept_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"

    def write(value: int) -> None:
        pixels, labels = np.full((4, 8, 8), value, np.uint8), np.arange(4)
        np.savez(path, train_images=pixels, test_images=pixels, train_labels=labels, test_labels=labels)

    config = {"data": READERS["npz"](path=str(path)), "train": 2, "test": 2, "side": 8}
    write(1)
    assert Few(**config, keep=True).build("train").array().max() == 1
    write(2)
    assert Few(**config, keep=True).build("train").array().max() == 1
    assert Few(**config).build("train").array().max() == 2
    assert Few(**{**config, "side": 4}, keep=True).build("train").array().max() == 2


def test_more_than_there_are_is_refused() -> None:
    data = READERS["synthetic"](num_train=50, size=8)
    with pytest.raises(UserError, match=r"^train is 51, but the data has 50 images there; write no more$"):
        Few(data=data, train=51).build("train")
    with pytest.raises(WrongValues, match="side is 0; write a number of at least 1"):
        Few(data=data, side=0)


# --- records ---


def _png(colour: tuple[int, int, int]) -> bytes:
    file = BytesIO()
    Image.new("RGB", (6, 6), colour).save(file, "png")
    return file.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """40 records of two pictures each, two of which are another's; two records an id; muscles as lists."""
    path = tmp_path / "things.zip"
    table = []
    with zipfile.ZipFile(path, "w") as file:
        for number in range(40):
            names = [f"{number}/{side}.png" for side in (0, 1)]
            for side, name in enumerate(names):
                same = side == 1 and number in (7, 9)
                file.writestr(name, _png((3, 3, 3) if same else (number, side, 100)))
            muscles = [["arm", "leg", "neck", "back"][number % 4], "foot"] if number else []
            table.append({"id": f"t{number // 2}", "images": names, "muscles": muscles})
        file.writestr("table.json", json.dumps(table))
    return path


def test_records_are_divided_by_what_is_kept_apart(archive: Path) -> None:
    config = Records(files=str(archive), image="images", label="muscles", apart="id")
    sources = {split: config.build(split) for split in ("train", "test")}
    assert sources["train"].classes == ("arm", "back", "leg", "neck")
    records: dict[str, set[int]] = {}
    for split, source in sources.items():
        shown = [np.asarray(source.image(number))[0, 0].tolist() for number in range(len(source))]
        records[split] = {red for red, _, blue in shown if blue == 100}
        for (red, _, blue), label in zip(shown, source.labels, strict=True):
            names = ["arm", "leg", "neck", "back"]
            assert blue != 100 or source.classes[label] == names[red % 4]
    assert not {red // 2 for red in records["train"]} & {red // 2 for red in records["test"]}
    assert records["train"] | records["test"] == set(range(1, 40))  # the first has no muscle
    assert len(sources["train"]) + len(sources["test"]) == 2 * 39 - 1  # one picture was there before
    assert 5 <= len(records["test"]) <= 19
    moved = Records(files=str(archive), image="images", label="muscles", apart="id", seed=1).build("test")
    assert {int(np.asarray(moved.image(n))[0, 0, 0]) for n in range(len(moved))} != records["test"]


def test_values_may_be_brought_together_and_left_out(archive: Path) -> None:
    classes = {"limb": ("leg", "arm"), "trunk": ("back",)}
    source = Records(files=str(archive), image="images", label="muscles", classes=classes).build("train")
    assert source.classes == ("limb", "trunk")
    assert {int(np.asarray(source.image(n))[0, 0, 0]) % 4 for n in range(len(source))} == {0, 1, 3}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "value": ({"classes": {"limb": ("legs",)}}, "classes: no record has muscles 'legs'; did you mean 'leg'"),
    "twice": ({"classes": {"a": ("leg",), "b": ("leg",)}}, "'leg' stands there twice"),
    "share": ({"test": 1.0}, "test is 1.0; write a share of the records, above 0 and below 1"),
    "column": ({"label": "muscle"}, "no column 'muscle'; did you mean 'muscles'"),
    "alone": ({"test": 1e-9}, "class 'arm': its .* pictures are all in one split"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name: str, archive: Path) -> None:
    given, message = BAD[name]
    with pytest.raises(UserError, match=message):
        Records(**{**dict(files=str(archive), image="images", label="muscles"), **given}).build("test")


# --- scenes ---


@pytest.mark.parametrize("question", CLASSES)
def test_what_is_asked_of_a_scene_is_what_is_in_it(question: Any) -> None:
    source = SceneClasses(question=question, count_train=96).build("train")
    assert isinstance(source, ScenesOf) and len(source.classes) == CLASSES[question]
    counts = Counter(source.labels.tolist())
    assert len(counts) == CLASSES[question] and max(counts.values()) - min(counts.values()) <= 1
    for number, label in enumerate(source.labels):
        objects = source.program(number).objects
        if question == "count":
            assert len(objects) == label + 1
        elif question == "position":
            (star,) = (thing for thing in objects if thing.kind == "star")
            assert math.floor(4 * star.y) * 4 + math.floor(4 * star.x) == label and len(objects) == 3
        elif question == "rotation":
            eighths = 8 * objects[0].angle / (2 * math.pi)
            assert round(eighths) % 8 == label and abs(eighths - round(eighths)) < 0.36
        else:
            steps = np.linspace(math.log(0.14), math.log(0.9), 7)
            assert np.searchsorted(steps, math.log(objects[0].size)) - 1 == label


def test_splits_and_seeds_draw_other_scenes() -> None:
    first = SceneClasses(question="size", count_train=4, count_test=4)
    shown = [
        [np.asarray(source.image(n)) for n in range(4)]
        for source in (
            first.build("train"),
            first.build("test"),
            SceneClasses(question="size", seed=1).build("train"),
        )
    ]
    for one in range(3):
        for other in range(one):
            assert not any(map(np.array_equal, shown[one], shown[other]))
    assert shown[0][0].shape == (32, 32, 3)


def test_a_turned_arrow_points_where_its_class_says() -> None:
    """By its pixels: an arrow's head is heavier than its shaft, and lies where it points."""
    source = SceneClasses(question="rotation", side=96, count_train=400).build("train")
    seen = set()
    for number, label in enumerate(source.labels):
        scene = source.program(number)
        if scene.objects[0].kind != "arrow" or scene.ground.name != "white" or scene.style != "flat":
            continue
        ink = 255.0 - np.asarray(source.image(number)).min(-1)
        rows, columns = np.nonzero(ink > 60)
        x, y = (columns + 0.5) / 96 - scene.objects[0].x, (rows + 0.5) / 96 - scene.objects[0].y
        turn = math.atan2(x.mean(), -y.mean())  # clockwise from upwards
        assert abs((turn - label * math.pi / 4 + math.pi) % (2 * math.pi) - math.pi) < 0.45
        seen.add(label)
    assert len(seen) >= 4


# --- the tasks of recipes/studies/peft_images.yaml ---

TASKS = {  # classes, images of the test split
    **{"mnist": (10, 2000), "emoji": (8, 917), "figures": (6, 1653), "exercises": (6, 515)},
    **{"count": (8, 2000), "position": (16, 2000), "rotation": (8, 2000), "size": (6, 2000)},
}


def patches(pixels: np.ndarray, seed: int = 0) -> Any:
    """A layer of whitened patches drawn from the pictures, rectified, averaged over a grid of 3 x 3 (Coates
    et al., AISTATS 2011): a map from pictures (N, 32, 32, 3) to features (N, 2304)."""
    generator = torch.Generator().manual_seed(seed)

    def cut(images: np.ndarray) -> torch.Tensor:
        unfolded = F.unfold(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, 6)
        return unfolded - unfolded.mean(1, keepdim=True)

    drawn = cut(pixels[:200]).transpose(1, 2).flatten(0, 1)
    drawn = drawn[drawn.std(1) > 0.05]
    drawn = drawn[torch.randperm(len(drawn), generator=generator)[:20_000]]
    values, vectors = torch.linalg.eigh(drawn.mT @ drawn / len(drawn))
    white = vectors @ torch.diag((values + 0.01).rsqrt()) @ vectors.mT
    filters = F.normalize(drawn[:128] @ white) @ white
    spread = (filters @ cut(pixels[:200])).std()

    def features(images: np.ndarray) -> torch.Tensor:
        seen = filters @ cut(images) / spread
        both = torch.cat([(seen - 0.5).relu(), (-seen - 0.5).relu()], 1)
        return F.adaptive_avg_pool2d(both.unflatten(2, (27, 27)), 3).flatten(1)

    return features


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("name", TASKS)
def test_a_task_of_the_study_loads_and_a_linear_probe_beats_chance(
    name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSMAMBA_DATA", str(shared_data))
    study = yaml.safe_load((ROOT / "recipes" / "studies" / "peft_images.yaml").read_text())
    text = study["axes"]["task"][name][0].removeprefix("task.data=").replace("$$", "$")
    reader = Part(READERS)._build(yaml.safe_load(text))
    train, test = (replace(reader, keep=False).build(split) for split in ("train", "test"))
    assert (len(train.classes), len(test)) == TASKS[name] and len(train) == 1000
    assert np.bincount(train.labels).min() >= 50
    same = {picture.tobytes() for picture in train.array()} & {p.tobytes() for p in test.array()}
    assert len(same) <= 1, "no test picture is trained on"
    features = patches(train.array())
    seen, asked = features(train.array()), features(test.array()[:500])
    mean, std = seen.mean(0), seen.std(0) + 1e-6
    probe = fit((seen - mean) / std, torch.from_numpy(train.labels), 1e-3)
    found = probe.logits((asked - mean) / std, len(train.classes)).argmax(1).numpy()
    most = np.bincount(test.labels[:500]).max() / 500  # by the class that is most of them
    assert (found == test.labels[:500]).mean() > most + 0.05
