"""`transmamba inspect` of our own students: their towers, and what of them was converted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from tiny_clip import made, word_tokenizer

import transmamba
from transmamba.ecosystems import open_clip as library
from transmamba.ecosystems.find import save_model
from transmamba.ecosystems.open_clip_tokenizer import OpenClipTokenizer

Command = Callable[..., Any]
open_clip = pytest.importorskip("open_clip", reason="needs open_clip")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers") / "clip"
    save_model(made(quick_gelu=True), folder)
    return folder


def student(clip: Path, folder: Path, **options: Any) -> Any:
    model, _ = transmamba.convert(clip, "clip", **options)
    transmamba.save_student(model, folder)
    return model


# image and text as convert is told of them; what is converted, the kinds, the first blocks' mixers
KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...], list[str], list[list[str]]]] = {
    "vim": ({}, ("image",), ["vim", "kept"], [["mamba"] * 4, ["attention"] * 2]),
    "half attention": (
        {"image": {"kind": "ssd_vit", "attention_layers": [1]}},
        ("image",),
        ["ssd_vit", "kept"],
        [["mamba2", "attention"], ["attention"] * 2],
    ),
    "vit": ({"image": {"kind": "vit"}}, (), ["vit", "kept"], [["attention"] * 2] * 2),
    "both": (
        {"image": {"kind": "ssd_vit"}, "text": {"kind": "mamba2"}},
        ("image", "text"),
        ["ssd_vit", "mamba2"],
        [["mamba2"] * 2] * 2,
    ),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_was_converted(clip: Path, tmp_path: Path, case: str) -> None:
    options, converted, kinds, mixers = KINDS[case]
    model = student(clip, tmp_path / "s", **options)
    found = transmamba.inspect(tmp_path / "s")
    assert found.refused is None and found.converted == converted and not found.students
    assert [tower["kind"] for tower in found.towers.values()] == kinds
    for (name, tower), wanted in zip(found.towers.items(), mixers, strict=True):
        own = {"image": model.visual, "text": model.text}[name]
        assert tower["parameters"] == sum(p.numel() for p in own.parameters())
        seen: list[str] = []
        for run in tower["sublayers"]:
            seen += [run["of"][0]["kind"]] * (run["last"] + 1 - run["first"])
        assert seen == wanted and tower["blocks"] == len(wanted)
        assert tower["head"]["size"] == 8 and tower["reads"] == name
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.reads["preprocessing"]["input_size"] == (3, 16, 16)
    tokenizer = found.reads["tokenizer"]
    assert tokenizer["kind"] == "CLIP's byte pairs" and tokenizer["context"] == 12


def test_towers_are_the_teacher_s_where_they_are_kept(clip: Path, tmp_path: Path) -> None:
    """A text tower as the teacher's own is described, and the image's embedding, which both have."""
    student(clip, tmp_path / "s", image={"kind": "ssd_vit"})
    mine, theirs = (transmamba.inspect(path).towers for path in (tmp_path / "s", clip))
    assert {k: v for k, v in mine["text"].items() if k not in ("kind", "parameters")} == theirs["text"]
    for key in ("embedding", "width", "blocks", "norm", "head"):
        assert mine["image"][key] == theirs["image"][key], key
    mlps = [towers["image"]["sublayers"][0]["of"][1] for towers in (mine, theirs)]
    for key in ("neurons", "gated", "norm", "activation", "layer_scale"):
        assert mlps[0][key] == mlps[1][key], key


def test_the_command_and_a_run(command: Command, clip: Path, tmp_path: Path) -> None:
    """RUN is its student, whose report of subcloning lies in RUN."""
    done = command("convert", clip, tmp_path / "run/student", "--student", "clip")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "run/student/subclone.json").read_text())
    (tmp_path / "run/student/subclone.json").rename(tmp_path / "run/subclone.json")
    for folder in (tmp_path / "run", tmp_path / "run/student"):
        shown = command("inspect", folder)
        assert shown.code == 0 and not shown.err, shown.err
        lines = shown.out.splitlines()
        assert lines[0].startswith(f"{folder} (student, CustomTextCLIP): ") and "float32" in lines[0]
        for line in (
            "image: vim, width 32, 4 blocks, reads image, 57,408 parameters",
            "text: kept, width 16, 2 blocks, reads text, 797,440 parameters",
            "converted      image",
            f"began with     {100 * report['covered']:.1f} % of its parameters from its teacher's",
            "tokenizer      CLIP's byte pairs, context 12",
        ):
            assert line in lines, line
        assert any("mamba: norm RMSNorm 1e-05, directions 2, channels 64, state 16" in line for line in lines)
    plain = json.loads(command("inspect", tmp_path / "run", "--json").out)
    assert plain["converted"] == ["image"] and plain["covered"] == report["covered"]


def test_a_check_reads_the_weights_and_has_no_view(command: Command, clip: Path, tmp_path: Path) -> None:
    student(clip, tmp_path / "s")
    done = command("inspect", tmp_path / "s", "--check")
    assert done.code == 1 and "a student has no view" in done.err and len(done.err.splitlines()) == 1
    assert "scalars        scale 14.29" in done.out
    (tmp_path / "s/open_clip_model.safetensors").unlink()
    assert command("inspect", tmp_path / "s").code == 0
    command("inspect", tmp_path / "s", "--check").refuses("open_clip_model.safetensors")


def test_another_library_s_tokenizer_and_tower(clip: Path, tmp_path: Path) -> None:
    word_tokenizer(tmp_path / "words")
    teacher = made(text=dict(vocab_size=11, pool_type="last", no_causal_mask=True))
    cfg, origin, _ = library.made_from(teacher)
    assert cfg is not None
    words = OpenClipTokenizer(12, str(tmp_path / "words"), masked=False)
    library.say_made_from(teacher, cfg, origin, words)
    model, _ = transmamba.convert(teacher, "clip")
    transmamba.save_student(model, tmp_path / "s")
    found = transmamba.inspect(tmp_path / "s").reads["tokenizer"]
    assert found["kind"] == "of transformers" and found["in"] == str(tmp_path / "s")


@pytest.mark.parametrize(("name", "kind"), [("vim", "mamba"), ("ssd_vit", "mamba2")])
def test_image_students_too(name: str, kind: str, tmp_path: Path) -> None:
    """In hand and from their folder."""
    shape = dict(img_size=8, patch_size=2, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    model, _ = transmamba.convert(timm.create_model("vit_tiny_patch16_224", **shape).eval(), name)
    transmamba.save_student(model, tmp_path / "s")
    for found in (transmamba.inspect(model), transmamba.inspect(tmp_path / "s")):
        image = found.towers["image"]
        assert found.converted == ("image",) and image["kind"] == name
        assert image["sublayers"][0]["of"][0]["kind"] == kind
        assert image["head"] == {"kind": "classifier", "classes": 5, "pool": ["cls"]}
        assert "tokenizer" not in found.reads
