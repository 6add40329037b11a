"""`transmamba evaluate` and `predict`: which data and classes they take, and what they say of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
import yaml
from harness import tiny_vit
from PIL import Image

from transmamba import adapt_teacher, convert
from transmamba.cli.arguments import recognised, task_of
from transmamba.config.registry import READERS
from transmamba.core.preprocessing import Preprocessing
from transmamba.ecosystems.find import load_model, preprocessing_of, save_model
from transmamba.errors import UserError

Command = Callable[..., Any]
SYNTHETIC = ["--data", "synthetic", "num_train=12", "num_test=8", "num_classes=3", "size=8"]


def write_images(folder: Path, names: tuple[str, ...], splits: tuple[str, ...] = ("train", "test")) -> Path:
    generator = np.random.default_rng(0)
    for split in splits:
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


# --- which data ---


@pytest.mark.parametrize(
    ("file", "reader"),
    [
        ("data/train-00000.parquet", "hf_dataset"),
        ("train.parquet", "hf_dataset"),
        ("dataset_dict.json", "hf_dataset"),
        ("train-images-idx3-ubyte.gz", "idx"),
        ("train/cat/1.png", "image_folder"),
        ("val/cat/1.png", "image_folder"),
        ("mnist.npz", "npz"),
    ],
)
def test_a_reader_knows_its_own(tmp_path: Path, file: str, reader: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    path = tmp_path / file if file.endswith(".npz") else tmp_path
    found = task_of(str(path), []).data
    assert type(found).name == reader and str(path) in vars(found).values()


def test_data_that_none_or_several_know(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no reader knows what is there; expected train/CLASS"):
        recognised(tmp_path)
    write_images(tmp_path, ("cat",))
    (tmp_path / "meta.parquet").touch()
    with pytest.raises(
        UserError, match=r"hf_dataset and image_folder can both read that; write --data hf_dataset"
    ):
        recognised(tmp_path)


def test_options_go_to_a_reader_that_was_guessed(tmp_path: Path) -> None:
    write_images(tmp_path, ("cat",))
    assert task_of(str(tmp_path), ["on_error=skip"]).data.on_error == "skip"
    with pytest.raises(UserError, match=r"root=/else: --data .* says that already"):
        task_of(str(tmp_path), ["root=/else"])


def test_a_reader_of_another_package_is_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.tar").touch()
    synthetic = READERS["synthetic"]
    monkeypatch.setattr(
        synthetic,
        "recognise",
        lambda path: synthetic(size=9) if any(path.glob("*.tar")) else None,
        raising=False,
    )
    assert task_of(str(tmp_path), []).data == synthetic(size=9)


# --- of a run ---


@pytest.fixture
def run(tmp_path: Path, teacher: Path) -> Path:
    """A run of an earlier version: keys that are gone everywhere but in its task."""
    folder, images = tmp_path / "run", write_images(tmp_path / "images", ("ant", "bee", "cat"))
    save_model(load_model(teacher), folder / "student")
    config = {
        "task": {"name": "image_classification", "data": {"name": "image_folder", "root": str(images)}},
        "student": {"name": "vim", "model": "vim_micro_patch2_8"},
        "init": {"rotate": "pca"},
        "stages": [{"steps": 1, "losses": ["kl"], "cloned_lr_scale": 0.5}],
        "trainer": {"batch_size": 4},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_of_an_earlier_version_is_measured(command: Command, run: Path, tmp_path: Path) -> None:
    for model in (run, run / "student"):
        done = command("evaluate", model)
        assert done.code == 0, done.err
        line = next(line for line in done.err.splitlines() if line.startswith("evaluating"))
        images = tmp_path / "images"
        assert line == (
            f"evaluating {model} on image_folder root={images}: test split, 9 items; cpu, float32"
        )
    elsewhere = write_images(tmp_path / "elsewhere", ("ant", "bee", "cat"), ("train", "val"))
    assert (
        f"root={elsewhere}: train split"
        in command("evaluate", run, f"root={elsewhere}", "--split", "train").err
    )


def test_evaluate_says_whose_teacher(command: Command, teacher: Path) -> None:
    done = command("evaluate", teacher, *SYNTHETIC, "--teacher", teacher, "--precision", "bf16")
    assert done.code == 0, done.err
    assert f"evaluating {teacher} and its teacher {teacher} on synthetic num_train=12" in done.err
    assert "test split, 8 items; cpu, bf16" in done.err and "agreement" in done.out


def named_otherwise(folder: Path, looks: Preprocessing | None = None) -> Path:
    """A teacher of the classes of `run` in another order, saved."""
    model = tiny_vit()
    model.pretrained_cfg = {**model.pretrained_cfg, "num_classes": 3, "label_names": ["cat", "ant", "bee"]}
    save_model(model, folder, looks)
    return folder


def test_a_student_is_scored_in_the_order_of_its_teacher_s_classes(
    command: Command, run: Path, tmp_path: Path
) -> None:
    """Which it carries; so also without the teacher beside it, and in `predict`."""
    teacher = adapt_teacher(load_model(named_otherwise(tmp_path / "teacher")))
    student, _ = convert(teacher, "vim")
    save_model(student, run / "student", teacher.preprocessing)
    alone = command("evaluate", run, "--json")
    assert alone.code == 0, alone.err
    beside = command("evaluate", run, "--teacher", tmp_path / "teacher", "--json")
    student = load_model(run)
    transform = preprocessing_of(student).eval_transform()
    right = [
        ["cat", "ant", "bee"][student(transform(Image.open(path))[None]).argmax()] == path.parent.name
        for path in sorted((tmp_path / "images/test").rglob("*.png"))
    ]
    found = json.loads(alone.out)["student"]["top1"]
    assert found == pytest.approx(100 * sum(right) / len(right))
    assert json.loads(beside.out)["student"]["top1"] == found


@pytest.mark.parametrize("named", ["model", "teacher"])
def test_agreement_of_models_that_see_other_pixels(
    command: Command, run: Path, tmp_path: Path, named: str
) -> None:
    """Items are compared class by class, in the order of the one that has names."""
    looks = preprocessing_of(tiny_vit())
    darker = dataclasses.replace(looks, mean=(0.4999,) * 3)
    other = named_otherwise(tmp_path / "named", darker)
    model, teacher = (other, run) if named == "model" else (run, other)
    done = command("evaluate", model, "--data", tmp_path / "images", "--teacher", teacher, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["student"]["top1"] == found["teacher"]["top1"]
    assert set(found["agreement"].values()) == {100.0}


def test_a_run_is_measured_on_its_own_task(command: Command, run: Path) -> None:
    """A task named beside it is that task, or refused; a folder that is none may be one letter off."""
    command("evaluate", run, "--task", "language").refuses(
        "--task language:", "was trained on the task image_classification; leave --task out, or write --data"
    )
    assert command("evaluate", run, "--task", "image_classification", "--json").code == 0
    command("evaluate", f"{run}s").refuses("no run there whose data to use", f"did you mean {run}?")


def test_evaluate_s_mistakes(command: Command, run: Path, teacher: Path) -> None:
    command("evaluate", teacher).refuses("no run there", "write --data")
    command("evaluate", teacher, *SYNTHETIC, "--batch-size", "0").refuses("batch_size is 0; write at least 1")
    (run / "config.yaml").write_text("task: {name: image_clasification}\n")
    command("evaluate", run).refuses("task: unknown task 'image_clasification'; did you mean")
    (run / "config.yaml").write_text("seed: 1\n")
    command("evaluate", run).refuses("task: ")


def test_logits_that_are_not_finite_are_one_line(command: Command, tmp_path: Path) -> None:
    model = tiny_vit()
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    save_model(model, tmp_path / "nan")
    command("evaluate", tmp_path / "nan", *SYNTHETIC).refuses("not finite")
    write_images(tmp_path / "images", ("a",), ("some",))
    command("predict", tmp_path / "nan", tmp_path / "images").refuses("not finite")


# --- predict ---


def test_predict_names_classes_by_the_run_s_data(command: Command, run: Path, tmp_path: Path) -> None:
    image = tmp_path / "images/test/bee/0.png"
    done = command("predict", run, image, "--top", "2", "--json")
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)
    model = load_model(run)
    with torch.no_grad():
        logits = model(preprocessing_of(model).eval_transform()(Image.open(image))[None])
    shares, numbers = logits.softmax(-1).topk(2)
    names = ["ant", "bee", "cat"]
    assert found["image"] == str(image)
    assert [row["class"] for row in found["classes"]] == [names[k] for k in numbers[0]]
    assert [row["probability"] for row in found["classes"]] == pytest.approx(shares[0].tolist(), rel=1e-5)
    line = command("predict", run, image, "--top", "1").out
    assert line == f"{image}: {names[numbers[0, 0]]} {100 * shares[0, 0]:.1f} %\n"


def test_predict_by_numbers_where_nothing_names_classes(
    command: Command, teacher: Path, run: Path, tmp_path: Path
) -> None:
    image = tmp_path / "images/test/bee/0.png"
    for model in (teacher, run):
        if model == run:
            (tmp_path / "images").rename(tmp_path / "moved")
            image = tmp_path / "moved/test/bee/0.png"
        done = command("predict", model, image, "--json")
        assert done.code == 0, done.err
        assert sorted(row["class"] for row in json.loads(done.out)[0]["classes"]) == ["0", "1", "2"]
    assert "classes are numbers, for the run's data cannot be read" in done.err


def test_predict_answers_for_the_others(command: Command, teacher: Path, tmp_path: Path) -> None:
    """Two of four cannot be read; the folder's are in order, in batches of any size."""
    folder = write_images(tmp_path, ("b", "a"), ("some",)) / "some"
    broken = folder / "a" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    done = command("predict", teacher, folder, tmp_path / "absent.png", "--json")
    assert done.code == 2
    found = json.loads(done.out)
    assert [row["image"].removeprefix(str(tmp_path)) for row in found] == [
        *(f"/some/{name}/{number}.png" for name in "ab" for number in range(3)),
        "/absent.png",
    ]
    assert [("error" in row) for row in found] == [False, True, False, False, False, False, True]
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert lines[0].startswith(f"error: {broken}: does not decode as an image (")
    assert lines[1] == f"error: {tmp_path / 'absent.png'}: no such file" and len(lines) == 2
    command("predict", teacher, folder, "--top", "0").refuses("top is 0")
    (tmp_path / "empty").mkdir()
    command("predict", teacher, tmp_path / "empty").refuses("no images there")


def test_a_picture_s_answer_does_not_depend_on_its_neighbours(teacher: Path, tmp_path: Path) -> None:
    from transmamba.evaluation.predict import pictures, predict

    paths = pictures([write_images(tmp_path, ("a", "b"), ("some",))])
    paths[2].write_bytes(b"no image")
    model = load_model(teacher)
    made = [
        list(predict(model, preprocessing_of(model), paths, device=torch.device("cpu"), batch_size=size))
        for size in (1, 4, 64)
    ]
    for one, several, all_ in zip(*made, strict=True):
        assert one.path == several.path == all_.path and one.trouble == several.trouble == all_.trouble
        for a, b, c in zip(one.classes, several.classes, all_.classes, strict=True):
            assert a[0] == b[0] == c[0] and a[1] == pytest.approx(b[1]) == pytest.approx(c[1])


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_model_without_a_head_predicts_nothing(command: Command, tmp_path: Path, library: str) -> None:
    model: Any = tiny_vit(0)
    if library == "transformers":
        shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        model = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **shape))
    save_model(model, tmp_path / "backbone")
    folder = write_images(tmp_path / "images", ("a",), ("some",))
    command("predict", tmp_path / "backbone", folder).refuses("has no classes, it gives features alone")
    command("evaluate", tmp_path / "backbone", *SYNTHETIC).refuses("model has no classes")


def test_a_teacher_without_a_head_is_not_measured(command: Command, teacher: Path, tmp_path: Path) -> None:
    save_model(tiny_vit(0), tmp_path / "backbone")
    command("evaluate", teacher, *SYNTHETIC, "--teacher", tmp_path / "backbone").refuses(
        f"teacher {tmp_path / 'backbone'} has no classes to measure it"
    )


def test_a_file_of_weights_with_the_name_of_its_model(command: Command, tmp_path: Path) -> None:
    """The line that asks for the name names options that there are."""
    images = write_images(tmp_path / "images", ("a",), ("some",))
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict(), tmp_path / "vit.pth")
    big = ["--data", "synthetic", "num_train=4", "num_test=4", "num_classes=3", "size=224"]
    vit = (tmp_path / "vit.pth", "vit_tiny_patch16_224")
    command("evaluate", vit[0], *big).refuses("holds weights alone", "--architecture NAME")
    command("predict", vit[0], images).refuses("holds weights alone", "--architecture NAME")
    done = command("predict", vit[0], images, "--architecture", vit[1], "--top", "1", "--json")
    assert done.code == 0 and len(json.loads(done.out)) == 3, done.err
    words = ("--architecture", vit[1], "--teacher", vit[0])
    command("evaluate", vit[0], *big, *words).refuses("--teacher-architecture NAME")
    done = command("evaluate", vit[0], *big, *words, "--teacher-architecture", vit[1], "--json")
    assert done.code == 0 and set(json.loads(done.out)["agreement"].values()) == {100.0}, done.err
    command("evaluate", vit[0], *big, *words[:2], "--teacher-architecture", vit[1]).refuses(
        "name the teacher"
    )
    command("evaluate", vit[0].parent, *big, *words[:2]).refuses("is no file of weights")
