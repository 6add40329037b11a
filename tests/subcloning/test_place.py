"""`convert` loses nothing: not the teacher, not the user's own files, and nothing is half written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from transmamba import save_student
from transmamba.errors import UserError
from transmamba.subcloning import place
from transmamba.subcloning.checkpoint import convert_checkpoint

SHAPE: dict[str, Any] = dict(img_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2, num_classes=3)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_student(timm.create_model("vit_tiny_patch16_224", **SHAPE), tmp_path / "teacher")
    return tmp_path / "teacher"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("teacher", "is the teacher"),
        ("teacher/.", "is the teacher"),
        ("link", "is the teacher"),
        ("teacher/student", "lies within the teacher"),
        ("link/new/deeper", "lies within the teacher"),
        (".", "holds the teacher"),
    ],
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_the_teacher_is_never_lost(
    where: str, how: str, prefix: str, overwrite: bool, teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(teacher)
    (tmp_path / "config.json").write_text("{}")
    before = content(tmp_path)
    with pytest.raises(UserError, match=how):
        convert_checkpoint(f"{prefix}{teacher}", tmp_path / where, overwrite=overwrite)
    assert content(tmp_path) == before


def test_the_student_of_a_run_is_its_teacher_s_place_too(teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    teacher.rename(run / "student")
    for out in (run, run / "student", run / "student" / "x"):
        with pytest.raises(UserError, match="of which nothing may be lost"):
            convert_checkpoint(str(run), out, overwrite=True)
    convert_checkpoint(str(run), run / "converted")  # beside it is fine


def test_a_file_of_weights_is_a_teacher_too(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "out" / "m.pth")
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds the teacher"):
        convert_checkpoint(str(tmp_path / "out" / "m.pth"), tmp_path / "out", overwrite=True)


def test_overwriting_replaces_a_model_s_files_alone(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    torch.manual_seed(0)
    convert_checkpoint(str(teacher), out)
    wanted = content(out)
    for file in ("model-00001-of-00002.safetensors", "preprocessor_config.json", "processor_config.json"):
        (out / file).write_text("of another model")
    (out / "model.safetensors.index.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    (out / "plots").mkdir()
    (out / "plots" / "a.png").write_bytes(b"a")
    (out / "elsewhere").symlink_to(tmp_path / "nowhere")
    (out / "model.safetensors").write_bytes(b"old")
    torch.manual_seed(0)
    convert_checkpoint(str(teacher), out, overwrite=True)
    assert content(out) == {**wanted, "notes.txt": b"mine", "plots/a.png": b"a"}
    assert (out / "elsewhere").is_symlink() and (out / "elsewhere").readlink() == tmp_path / "nowhere"
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "out"}


def test_a_link_to_a_folder_stays_one(teacher: Path, tmp_path: Path) -> None:
    convert_checkpoint(str(teacher), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "model.safetensors").write_bytes(b"old")
    convert_checkpoint(str(teacher), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink() and len((tmp_path / "real/model.safetensors").read_bytes()) > 3


@pytest.mark.parametrize("fails", ["save_model", "write_model_card", "rename"])
def test_a_failure_leaves_what_was_there(
    fails: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    convert_checkpoint(str(teacher), out)
    (out / "notes.txt").write_text("mine")
    before = content(out)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    if fails == "rename":
        moved: list[Path] = []
        rename = Path.rename

        def second_fails(self: Path, target: Path) -> Path:
            moved.append(self)
            return full() if len(moved) == 2 else rename(self, target)

        monkeypatch.setattr(Path, "rename", second_fails)
    else:
        monkeypatch.setattr(f"transmamba.subcloning.checkpoint.{fails}", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        convert_checkpoint(str(teacher), out, overwrite=True)
    assert content(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "out"}


def test_where_there_are_no_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise OSError(1, "Operation not permitted")

    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(os, "link", none)
    place._link(str(tmp_path / "notes.txt"), str(tmp_path / "copy.txt"))
    assert (tmp_path / "copy.txt").read_text() == "mine"


def test_what_is_no_model_is_not_overwritten(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no model"):
        convert_checkpoint(str(teacher), tmp_path / "out", overwrite=True)
    with pytest.raises(UserError, match="is not empty"):
        convert_checkpoint(str(teacher), tmp_path / "out")
    assert json.loads((teacher / "config.json").read_text())["num_classes"] == 3
