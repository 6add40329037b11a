"""convert, evaluate and inspect of models of images and text, and convert from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_clip import made

import transmamba
from transmamba.cli.arguments import task_of
from transmamba.config import load as configs
from transmamba.config.registry import READERS
from transmamba.ecosystems.find import save_model
from transmamba.ecosystems.folders import OPEN_CLIP_CONFIG
from transmamba.errors import UserError
from transmamba.students.clip.names import ImageTower
from transmamba.tasks.image_text import ImageTextConfig

open_clip = pytest.importorskip("open_clip", reason="needs open_clip")
Command = Callable[..., Any]
SCENES = ["side=16", "count_train=8", "count_test=6"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers") / "clip"
    save_model(made(quick_gelu=True), folder)
    return folder


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def embeddings(model: Any) -> list[torch.Tensor]:
    torch.manual_seed(2)
    image, text = torch.randn(2, 3, 16, 16), open_clip.tokenize(["a red square", "two dogs"], 12)
    with torch.no_grad():
        return [model.encode_image(image), model.encode_text(text)]


# --- convert ---


def test_convert_writes_what_open_clip_loads(command: Command, clip: Path, tmp_path: Path) -> None:
    """To the last bit what Python's convert makes, with a card that says how."""
    words = ["image.kind=ssd_vit", "text.kind=mamba2", "text.kwargs.layers=1", "--student", "clip"]
    done = command("convert", clip, tmp_path / "out", *words)
    assert done.code == 0, done.err
    torch.manual_seed(0)
    student, report = transmamba.convert(
        clip, "clip", image=ImageTower(kind="ssd_vit"), text={"kind": "mamba2", "kwargs": {"layers": 1}}
    )
    assert report.rows and len(student.text.blocks) == 1  # type: ignore[arg-type, union-attr]
    transmamba.save_student(student, tmp_path / "mine")
    for folder, wanted in ((tmp_path / "mine", student), (tmp_path / "out", None)):
        loaded, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        again = transmamba.load_student(folder)
        assert isinstance(again, open_clip.CustomTextCLIP) and not again.training
        for one, other in zip(embeddings(loaded.eval()), embeddings(wanted or again), strict=True):
            assert torch.equal(one, other)
    page = (tmp_path / "out/README.md").read_text()
    front = yaml.safe_load(page.split("---")[1])
    assert front["library_name"] == "open_clip" and front["tags"][0] == "zero-shot-image-classification"
    assert "import transmamba  # registers the towers" in page and "open_clip.create_model" in page
    assert json.loads((tmp_path / "out/subclone.json").read_text())
    with pytest.raises(UserError, match="is not empty"):
        transmamba.save_student(student, tmp_path / "out")
    transmamba.save_student(student, tmp_path / "out", overwrite=True)


def test_options_reach_the_towers(command: Command, clip: Path, tmp_path: Path) -> None:
    done = command(
        "convert", clip, tmp_path / "out", "--student", "clip", "image.kwargs.depth=2", "image.kind=vim"
    )
    assert done.code == 0, done.err
    name = json.loads((tmp_path / "out" / OPEN_CLIP_CONFIG).read_text())["model_cfg"]["vision_cfg"][
        "timm_model_name"
    ]
    assert name.startswith("vim_shaped.") and "depth=2" in name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["image.kind=vmi"], ["image.kind: unknown value 'vmi'", "known: ssd_vit, vim, vit"]),
        (["imagee.kind=vim"], ["imagee: unknown key; did you mean 'image'?"]),
        (["image.kwarg.depth=2"], ["image.kwarg: unknown key; did you mean 'kwargs'?"]),
        (["image=vim"], ["image: "]),
        (["image.kwargs.dpeth=2"], ["dpeth"]),
        (["text.kwargs.layers=1"], ["kwargs are for mamba2"]),
        (["image=3", "image.kind=vim"], ["image is 3 already"]),
        (["depth=2"], ["depth: unknown key"]),
        (["num_classes=3"], ["num_classes is 3, but a clip tells no classes apart"]),
    ],
)
def test_wrong_options_are_named(
    words: list[str], says: list[str], command: Command, clip: Path, tmp_path: Path
) -> None:
    command("convert", clip, tmp_path / "out", "--student", "clip", *words).refuses(*says)
    assert not (tmp_path / "out").exists()


def test_pictures_rank_coordinates(command: Command, clip: Path, tmp_path: Path) -> None:
    """A narrower tower keeps those of the largest activation, which a folder of pictures tells."""
    folder = pictures(tmp_path / "pictures", 5)
    words = ["--student", "clip", "image.kwargs.embed_dim=24"]
    ways: dict[str, list[Any]] = {"plain": [], "ranked": ["--data", folder]}
    for name, more in ways.items():
        done = command("convert", clip, tmp_path / name, *words, *more)
        assert done.code == 0, done.err
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    images = torch.stack([transform(Image.open(path)) for path in sorted(folder.iterdir())])
    wanted, _ = transmamba.convert(clip, "clip", calibration=[images], image={"kwargs": {"embed_dim": 24}})
    head = "visual.head.proj.weight"  # (8, 24): of the coordinates that were kept
    plain, ranked = (transmamba.load_student(tmp_path / name).get_parameter(head) for name in ways)
    assert torch.equal(ranked, wanted.get_parameter(head)) and not torch.equal(ranked, plain)


def test_an_image_classifier_is_no_clip(command: Command, teacher: Path, tmp_path: Path) -> None:
    command("convert", teacher, tmp_path / "out", "--student", "clip").refuses(
        "student clip needs a teacher that embeds images"
    )
    command("convert", teacher, tmp_path / "out", "--student", "open_clip").refuses(
        "takes no weights of a teacher"
    )


# --- evaluate ---


def test_any_clip_is_evaluated_beside_its_teacher(command: Command, clip: Path, tmp_path: Path) -> None:
    student, _ = transmamba.convert(clip, "clip")
    transmamba.save_student(student, tmp_path / "student")
    words = ["--task", "image_text", "--data", "scenes", *SCENES, "--batch-size", 4, "--json"]
    alone = command("evaluate", clip, *words)
    assert alone.code == 0, alone.err
    assert 0 <= json.loads(alone.out)["student"]["mean_recall"] <= 100
    both = json.loads(command("evaluate", tmp_path / "student", "--teacher", clip, *words).out)
    assert both["teacher"]["mean_recall"] == json.loads(alone.out)["student"]["mean_recall"]
    assert both["agreement"]["text_cosine"] == pytest.approx(1, abs=1e-6)  # its text tower was kept
    assert both["agreement"]["image_cosine"] < 0.999
    table = command("evaluate", clip, *words[:-1])
    assert "mean recall %" in table.out


def test_a_folder_of_pictures_needs_a_teacher(command: Command, clip: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", 3)
    words = ["--task", "image_text", "--data", folder, "--json"]
    command("evaluate", clip, *words).refuses("this data says nothing of one model", "--teacher")
    done = command("evaluate", clip, *words, "--teacher", clip)
    assert done.code == 0, done.err
    assert json.loads(done.out)["agreement"] == {"image_cosine": pytest.approx(1, abs=1e-6)}


def test_the_readers_are_the_task_s(command: Command, clip: Path, tmp_path: Path) -> None:
    command("evaluate", clip, "--task", "image_text", "--data", "npz").refuses(
        "--data npz: that reader goes with --task image_classification; write that"
    )
    command("evaluate", clip, "--data", "scenes").refuses("goes with --task image_text or --task questions")
    command("evaluate", clip, "--task", "image_text", "--data", tmp_path).refuses(
        "no reader knows what is there", "a folder of pictures", "transmamba list pairs"
    )


def test_a_table_of_test_pairs_is_enough(command: Command, clip: Path, tmp_path: Path) -> None:
    """Nothing is trained on, so no training split is asked for."""
    pictures(tmp_path / "images", 4)
    rows = [f"images/{n}.png,picture number {n}" for n in range(4)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,text", *rows]))
    words = ["--task", "image_text", "--json", "caption=text"]
    named = command("evaluate", clip, "--data", "table", f"test={tmp_path / 'pairs.csv'}", *words)
    assert named.code == 0, named.err
    seen = command("evaluate", clip, "--data", tmp_path / "pairs.csv", *words)
    key = "mean_recall"
    assert json.loads(named.out)["student"][key] == json.loads(seen.out)["student"][key]


@pytest.mark.parametrize(
    ("files", "reader", "train"),
    [
        (["a.jsonl"], "table", "a.jsonl"),
        (["shards/0.tar"], "webdataset", "shards/*.tar"),
        (["shards/train/0.tar", "shards/test/0.tar"], "webdataset", "shards/train/*.tar"),
        (["own/deep/1.jpg"], "pictures", "own"),
        (["own/train/1.jpg", "own/test/1.jpg"], "pictures", "own/train"),
    ],
)
def test_a_pair_reader_knows_its_own(tmp_path: Path, files: list[str], reader: str, train: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found = task_of(str(tmp_path / files[0].split("/")[0]), [], "image_text").data
    assert type(found).name == reader and found.train == str(tmp_path / train)


def test_zero_shot_and_a_probe_from_python(clip: Path) -> None:
    """What the sets give, each under its own name."""
    digits = READERS["synthetic"](num_train=12, num_test=9, num_classes=3, size=16)
    data = {"name": "scenes", "side": 16, "count_train": 4, "count_test": 4}
    values = {
        "data": data,
        "zero_shot": [{"data": configs.dump(digits)}, {"data": configs.dump(digits), "name": "again"}],
        "probe": configs.dump(digits),
    }
    task = configs.parse(ImageTextConfig, values, "task")
    found = transmamba.evaluate(clip, task, teacher=clip)
    student = found["student"]
    assert student["zero_shot_top1"] == student["zero_shot_again_top1"]
    assert {"mean_recall", "probe_top1"} <= student.keys()
    assert found["agreement"]["zero_shot_again_agreement"] == 100.0


def test_zero_shot_and_a_probe_from_the_command_line(command: Command, clip: Path, tmp_path: Path) -> None:
    """As a recipe would say it, whether a reader is named or its folder is known by looking."""
    sets, templates = tmp_path / "sets", tmp_path / "templates.txt"
    for split, count in (("train", 6), ("test", 4)):
        for kind in ("red thing", "dog"):
            pictures(sets / split / kind, count)
    templates.write_text("a drawing of a {c}.\nthe {c}\n")
    dots = {"name": "synthetic", "num_test": 9, "num_classes": 3, "size": 16}
    folder = {"name": "image_folder", "root": str(sets)}
    recipe = {
        "data": {"name": "scenes", "side": 16, "count_train": 8, "count_test": 6},
        "zero_shot": [{"data": dots, "name": "dots"}, {"data": folder, "templates": str(templates)}],
        "probe": {**folder, "on_error": "skip"},
        "final_split": "test",
    }
    options = [
        *SCENES,
        *(f"task.zero_shot.0.data.{key}={value}" for key, value in dots.items()),
        "task.zero_shot.0.name=dots",
        f"task.zero_shot.1.data={sets}",
        f"task.zero_shot.1.templates={templates}",
        f"task.probe={sets}",
        "task.probe.on_error=skip",
    ]
    assert task_of("scenes", options, "image_text", split="test") == configs.parse(
        ImageTextConfig, recipe, "task"
    )
    words = ["--task", "image_text", "--data", "scenes", "--teacher", clip, "--json"]
    done = command("evaluate", clip, *words, *options)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    for key in ("mean_recall", "i2t_r1", "zero_shot_dots_top1", "zero_shot_top1", "probe_top1"):
        assert 0 <= found["student"][key] == found["teacher"][key] <= 100, key
        assert found["difference"][key]["mean"] == 0 and found["difference"][key]["items"] in (6, 8, 9)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["task.zero_shot.1.data=synthetic"], "task.zero_shot.1.data=synthetic: zero_shot is empty"),
        (["task.zero_shot.0.data=/no/folder"], "zero_shot.0.data: unknown data reader '/no/folder'"),
        (["task.zero_shot.0.data={here}"], "task.zero_shot.0.data={here}: no reader knows what is there"),
        (["task.probe.nam=synthetic"], "probe"),
        (["task.probes=synthetic"], "did you mean 'probe'"),
        (["task.probe"], "task.probe: write key=value"),
        (
            ["task.probe=synthetic", "--split", "train"],
            "task.probe=synthetic is measured with the split test",
        ),
        (
            ["task.final_split=validation"],
            "task.final_split=validation: test is the split measured; write",
        ),
    ],
)
def test_what_task_options_are_refused(
    command: Command, clip: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    given = [word.format(here=tmp_path) for word in words]
    done = command("evaluate", clip, "--task", "image_text", "--data", "scenes", *SCENES, *given)
    assert done.code == 2 and says.format(here=tmp_path) in done.err and "Traceback" not in done.err, done.err


def test_the_split_that_is_measured_is_the_final_one(tmp_path: Path) -> None:
    """Of a run that held a share out too: what is measured with the final split is measured with any."""
    task = {"name": "image_text", "data": "scenes", "validation": 0.2, "final_split": "validation"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"task": task}))
    for split in ("test", "validation"):
        found = task_of(None, ["count_test=5", "task.probe=synthetic"], run=tmp_path, split=split)
        assert found.final_split == split and found.data.count_test == 5 and found.validation == 0.2
        assert type(found.probe).name == "synthetic"
    assert task_of(None, [], run=tmp_path, split="train").final_split == "validation"


# --- inspect ---


def test_inspect_says_that_a_clip_can_be_made(command: Command, clip: Path) -> None:
    found = transmamba.inspect(clip)
    assert found.students["clip"] is None and "open_clip" not in found.students
    assert "student        clip" in command("inspect", clip).out.splitlines()
