"""What a user may get wrong about a CLIP, each in one line: what, the value, what to write instead."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_clip import made, siglip

import transmamba
from transmamba.ecosystems.find import save_model
from transmamba.ecosystems.folders import OPEN_CLIP_CONFIG
from transmamba.errors import UserError

Command = Callable[..., Any]
pytest.importorskip("open_clip", reason="needs open_clip")

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP, `clip`, and the student made of it, `vim`."""
    folder = tmp_path_factory.mktemp("clips")
    save_model(made(quick_gelu=True), folder / "clip")
    student, _ = transmamba.convert(folder / "clip", "clip")
    transmamba.save_student(student, folder / "vim")
    return folder


SSD = "image.kind=ssd_vit"
# options -> what is said of them
TOWERS: dict[tuple[str, ...], str] = {
    ("image.kwargs.img_size=32",): "student.image.kwargs.img_size is 32, the teacher's pictures are 16 x 16",
    ("image.kwargs.num_classes=3",): "num_classes is 3, but a clip tells no classes apart; leave it out",
    ("image.kwargs.global_pool=",): "global_pool is None; of a vim write token or avg",
    ("image.kwargs.global_pool=map",): "global_pool is 'map'; of a vim write token or avg",
    (SSD, "image.kwargs.global_pool=max"): "'max'; of a ssd_vit write token or avg or map",
    (SSD, "image.kwargs.embed_dim=31"): "kwargs: embed_dim is 31, no multiple of num_heads, 2",
    (SSD, "image.kwargs.embed_dim=30"): "embed_dim=32, or student.image.kind=vim to shrink",
    ("image.kwargs.depth=x",): "student.image.kwargs: depth is x; write a whole number of at least 1",
    ("image.kwargs.dpeth=2",): "student.image.kwargs: unknown option 'dpeth'; did you mean 'depth'?",
    (SSD, "image.kwargs.patch_size=8"): "leave img_size and patch_size out of student.image.kwargs",
    (SSD, "image.kwargs.act_layer=foo"): "act_layer is 'foo', which timm does not know; write gelu or",
    (SSD, "image.kwargs.class_token=false"): "'token' without a class_token; write global_pool=avg",
    (SSD, "image.attention_layers=[7]"): "attention_layers is [7]; the layers are 0 to 1",
    ("text.kind=mamba2", "text.kwargs.width=9"): "student.text.kwargs.width: all but `layers` follows",
}


@pytest.mark.parametrize("words", TOWERS, ids=" ".join)
def test_of_a_tower(command: Command, clips: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    done = command("convert", clips / "clip", tmp_path / "out", "--student", "clip", *words)
    done.refuses(TOWERS[words])
    assert "_shaped" not in done.err, "a name that nobody wrote"
    assert not (tmp_path / "out").exists()


def test_the_teacher_s_own_size_may_be_said(command: Command, clips: Path, tmp_path: Path) -> None:
    words = ["--student", "clip", "image.kwargs.img_size=16", "image.kwargs.depth=1"]
    assert command("convert", clips / "clip", tmp_path / "out", *words).code == 0


def test_of_which_student(command: Command, clips: Path, tmp_path: Path) -> None:
    command("convert", clips / "clip", tmp_path / "out", "image.kind=vim").refuses(
        "image.kind=vim is an option of a clip or a llava, not of vim; add --student {clip,llava}"
    )
    command("convert", clips / "vim", tmp_path / "out", "--student", "clip").refuses(
        "it is a student already, in which Mamba stands for attention; write its teacher"
    )


def _config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    found = json.loads((folder / OPEN_CLIP_CONFIG).read_text())
    change(found["model_cfg"])
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(found))


def _cut(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"holds no weights ({WEIGHTS}): half written?"),
    "cut off": (_cut, f"{WEIGHTS}' is cut off or damaged: it has "),
    "no config": (
        lambda f: (f / OPEN_CLIP_CONFIG).unlink(),
        "holds no config.json",
    ),
    "no text tower": (
        lambda f: _config(f, lambda c: c.pop("text_cfg")),
        "has no text_cfg; write or fetch it again",
    ),
    "unknown shape": (
        lambda f: _config(f, lambda c: c["vision_cfg"].update(timm_model_name="vim_shaped.dpeth=3")),
        "unknown option 'dpeth'; did you mean 'depth'?",
    ),
    "another shape": (
        lambda f: _config(f, lambda c: c["vision_cfg"].update(timm_model_name="vim_shaped.embed_dim=16")),
        "could not be made: Error(s) in loading state_dict",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_of_a_folder(
    command: Command, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """By its path, and by its bare name from beside it; for every verb that loads it."""
    spoil, said = SPOILT[case]
    shutil.copytree(clips / "vim", tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save("p.png")
    for name in (tmp_path / "spoilt", "spoilt"):
        for words in (
            ("predict", name, "p.png", "--labels", "a", "b"),
            ("inspect", name, "--check"),
            ("evaluate", name, "--task", "image_text", "--data", "scenes"),
            ("convert", name, "out", "--student", "clip"),
        ):
            done = command(*words)
            done.refuses(said)
            assert len(done.err) < 700, done.err


def test_of_data(command: Command, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", clips / "vim", "--task", "image_text", "--data"]
    command(*words, "captions.csv").refuses("--data captions.csv: no such file or folder")
    command(*words, "tabel").refuses("unknown pair reader 'tabel'; did you mean 'table'?")
    (tmp_path / "t.csv").write_text("image,text\np.png,a picture")
    command(*words, "t.csv").refuses("no column 'caption'; known: image, text")
    command("evaluate", clips / "vim", "--data", "digits").refuses(
        "model compares pictures with texts and has no classes", "--task image_text"
    )


@pytest.mark.parametrize("split", ["test", "train"])
def test_captions_that_are_cut_are_said(
    command: Command, clips: Path, tmp_path: Path, split: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Before they are measured, for the split that is."""
    rows = []
    for number, caption in enumerate(["word " * 40, "short", "another " * 30]):
        pixels = np.full((16, 16, 3), 40 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{caption}")
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *rows]))
    words = ["evaluate", clips / "vim", "--task", "image_text", "--data", tmp_path / "pairs.csv"]
    done = command(*words, "--split", split)
    called = {"test": "test", "train": "training"}[split]
    assert done.code == 0
    assert f"2 of 3 {called} captions that were looked at are longer than the model's 12" in caplog.text


def test_a_missing_extra(
    command: Command, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "open_clip" else find(name, *rest)
    )
    for words in (
        ("convert", clips / "clip", tmp_path / "out", "--student", "clip"),
        ("inspect", clips / "vim"),
        ("evaluate", clips / "vim", "--task", "image_text", "--data", "scenes"),
        ("predict", clips / "vim", tmp_path, "--labels", "a", "b"),
    ):
        command(*words).refuses("needs open_clip: pip install 'transmamba[clip]'")


def test_an_attention_pool_that_a_student_cannot_have() -> None:
    """A vim reads another thing in its place and says so; told to have it, it is refused by name."""
    model = siglip()
    _, report = transmamba.convert(model, "clip")
    dropped = {drop.why for drop in report.dropped if drop.source.startswith("pool.")}
    assert dropped and all("the teacher's an attention pool" in why for why in dropped)
    with pytest.raises(UserError, match="global_pool is 'map'; of a vim write token or avg"):
        transmamba.convert(model, "clip", image={"kwargs": {"global_pool": "map"}})
