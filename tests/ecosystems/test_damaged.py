"""Weights that are cut off, empty or a pointer: a line that names the file, its size and the remedy."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import tiny_vit
from safetensors.torch import load_file, save_file
from small_gguf import save_gguf

from transmamba import UserError, load_student, load_teacher
from transmamba.ecosystems.damaged import damage, damage_of
from transmamba.ecosystems.find import load_model, save_model
from transmamba.ecosystems.slices import Slices
from transmamba.ecosystems.sources import read_source
from transmamba.subcloning.checkpoint import convert_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))
from decoders_made import make


def decoder(folder: Path) -> None:
    make("Llama 2").save_pretrained(folder)


def shards(folder: Path) -> None:
    make("Llama 2").save_pretrained(folder, max_shard_size="10KB")


def timm_vit(folder: Path) -> None:
    save_model(tiny_vit(), folder)


def hf_vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=2)).save_pretrained(folder)


def points(folder: Path) -> None:
    """Only what says that it is one, beside weights that are not looked at."""
    from transmamba.config.registry import STUDENTS
    from transmamba.core.points import PointShape
    from transmamba.core.tower import StudentSpec

    shape = PointShape(width=3, outputs=1, length=8, positions=8)
    spec = StudentSpec(view=None, preprocessing=None, num_classes=None, points=shape)
    student = STUDENTS["sequence"](pattern="AF", width=16, heads=2).build(spec)
    save_model(student, folder)


MADE: dict[str, Callable[[Path], None]] = {
    "decoder": decoder,
    "shards": shards,
    "timm": timm_vit,
    "hugging face": hf_vit,
    "points": points,
}
SAID = {
    "cut": r"is cut off or damaged: it has {size} bytes, not the {whole} of its own header; copy or download",
    "short": "is cut off or damaged: it has 20 bytes, and its header cannot be read; copy or download",
    "empty": "is empty; copy or download it again",
    "pointer": "is a pointer of Git LFS in the place of the weights; run `git lfs pull` there",
}


def spoil(file: Path, how: str) -> str:
    """What is to be said then."""
    whole = file.stat().st_size
    if how == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 94949\n")
    else:
        os.truncate(file, {"cut": whole * 2 // 3, "short": 20, "empty": 0}[how])
    return f"{file.name}' " + SAID[how].format(size=f"{file.stat().st_size:,}", whole=f"{whole:,}")


@pytest.mark.parametrize("how", SAID)
@pytest.mark.parametrize("kind", MADE)
def test_whoever_reads_a_folder(kind: str, how: str, tmp_path: Path) -> None:
    MADE[kind](tmp_path / "m")
    said = spoil(sorted((tmp_path / "m").glob("*.safetensors"))[-1], how)
    attempts: list[Callable[[], Any]] = [
        lambda: load_teacher(tmp_path / "m"),
        lambda: load_model(tmp_path / "m"),
        lambda: load_student(tmp_path / "m"),
        lambda: convert_checkpoint(str(tmp_path / "m"), tmp_path / "out", student="hybrid_lm"),
    ]
    for attempt in attempts:
        with pytest.raises(UserError, match=said) as error:
            attempt()
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["cut", "short", "empty", "pointer"])
def test_a_file_alone(how: str, tmp_path: Path) -> None:
    state = tiny_vit().state_dict()
    save_file(state, tmp_path / "m.safetensors")
    torch.save(state, tmp_path / "m.pth")
    save_gguf(tmp_path / "m.gguf")
    for name in ("m.safetensors", "m.pth", "m.gguf"):
        said = spoil(tmp_path / name, how)
        if name != "m.safetensors" and how in ("cut", "short"):
            said = rf"{name}' \([\d,]+ bytes\) is (perhaps )?cut off or damaged; copy or download it again"
        with pytest.raises(UserError, match=said) as error:
            convert_checkpoint(str(tmp_path / name), tmp_path / "out")
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_pickles_of_before_and_archives_with_a_wrong_byte(tmp_path: Path) -> None:
    state = tiny_vit().state_dict()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    os.truncate(tmp_path / "old.pth", 3000)
    with pytest.raises(UserError, match=r"old\.pth' \(3,000 bytes\) is perhaps cut off or damaged"):
        convert_checkpoint(str(tmp_path / "old.pth"), tmp_path / "out")
    torch.save(state, tmp_path / "new.pth")
    assert damage(tmp_path / "new.pth") is None
    wrong = bytearray((tmp_path / "new.pth").read_bytes())
    wrong[len(wrong) // 2] ^= 255
    (tmp_path / "new.pth").write_bytes(bytes(wrong))
    assert "new.pth' (" in (damage(tmp_path / "new.pth") or "")


def test_whole_files_are_not_blamed(tmp_path: Path) -> None:
    """Nor files that no model is read from."""
    decoder(tmp_path / "m")
    file = tmp_path / "m/model.safetensors"
    (tmp_path / "m/notes.safetensors").touch()
    assert damage(file) is None and damage_of(str(tmp_path / "m")) is None
    save_file({}, tmp_path / "none.safetensors")
    assert damage(tmp_path / "none.safetensors") is None
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks model\.norm\.weight"):
        load_teacher(tmp_path / "m")
    (tmp_path / "s.safetensors").write_bytes(b"ab")
    assert "has 2 bytes, and its header cannot be read" in (damage(tmp_path / "s.safetensors") or "")
    (tmp_path / "t.safetensors").write_text("hello, world")
    assert damage(tmp_path / "t.safetensors") is None


def test_a_repository_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files lie in the Hub's cache."""
    decoder(tmp_path / "m")
    said = spoil(tmp_path / "m/model.safetensors", "cut")
    monkeypatch.setattr(
        "transmamba.ecosystems.hub.cached", lambda repo, file, revision: tmp_path / "m" / file
    )
    for name in ("owner/name", "hf-hub:owner/name", "owner/name@main"):
        assert said.split("' ")[1].split(":")[0] in (damage_of(name) or "")


def test_tensors_that_the_index_only_promises(tmp_path: Path) -> None:
    shards(tmp_path / "m")
    first, second = sorted((tmp_path / "m").glob("*.safetensors"))[:2]
    name = next(iter(load_file(first)))
    shutil.copy(second, first)
    with pytest.raises(UserError, match=rf"{first.name}' cannot be read"):
        Slices(read_source(str(tmp_path / "m"))).read([name])
