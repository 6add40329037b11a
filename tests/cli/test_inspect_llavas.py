"""`transmamba inspect` of LLaVAs: tower, connector, decoder and cross-Mamba of teachers and of students."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_llava import llava_folder

import transmamba
from transmamba.teachers.llava import Llava

Command = Callable[..., Any]
CROSS = dict(num_heads=2, state_size=4)
PICTURES = {"vim": "mamba", "ssd_vit": "mamba2", "kept": "attention"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_folder(tmp_path_factory.mktemp("llava"))


def numbers(*modules: Any) -> int:
    return sum(tensor.numel() for module in modules for tensor in module.parameters())


def mixers(tower: Any) -> list[str]:
    return [run["of"][0]["kind"] for run in tower["sublayers"] for _ in range(run["first"], run["last"] + 1)]


# options of convert, image tokens; kinds of tower and decoder, the decoder's mixers, what is converted
CASES: dict[str, tuple[dict[str, Any], int | None, str, str, list[str], tuple[str, ...]]] = {
    "both": (
        dict(image={"kind": "vim"}, decoder={"kind": "hybrid", "attention_layers": [1]}),
        None,
        "vim",
        "hybrid",
        ["mamba2", "attention"],
        ("image", "decoder"),
    ),
    "no attention, one token": (
        dict(decoder={"kind": "hybrid"}),
        1,
        "kept",
        "mamba2",
        ["mamba2"] * 2,
        ("decoder",),
    ),
    "cross once": (
        dict(image={"kind": "ssd_vit"}, cross=CROSS),
        None,
        "ssd_vit",
        "kept",
        ["attention"] * 2,
        ("image",),
    ),
    "a rival behind each layer": (
        dict(cross={**CROSS, "mode": "film", "every": 1, "prompt": "shuffled"}, decoder={"kind": "hybrid"}),
        None,
        "kept",
        "mamba2",
        ["mamba2"] * 2,
        ("decoder",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_part_of_a_student(teacher: Path, tmp_path: Path, case: str) -> None:
    """Of its folder, without its weights, and in hand."""
    options, tokens, tower, decoder, kinds, converted = CASES[case]
    student: Any = transmamba.convert(
        Llava(model=str(teacher), image_tokens=tokens).build(), "llava", **options
    )[0]
    transmamba.save_student(student, tmp_path / "s")
    for found in (transmamba.inspect(tmp_path / "s"), transmamba.inspect(student)):
        assert found.refused is None and found.converted == converted
        assert (found.towers["image"]["kind"], found.towers["decoder"]["kind"]) == (tower, decoder)
        assert mixers(found.towers["decoder"]) == kinds
        assert set(mixers(found.towers["image"])) == {PICTURES[tower]}
        assert found.towers["decoder"]["embedding"]["place"] == student.config.image_token_id
        assert found.towers["image"]["head"] == {"kind": "connector"}
        assert found.parts["connector"]["widths"] == [24, 32, 32]
        assert found.parts["connector"]["tokens_a_picture"] == (tokens or 4)
        assert found.reads["pictures"]["tokens_each"] == (tokens or 4)
        assert {**found.towers, **found.parts}.keys() == {
            "image", "connector", "decoder", *(["cross"] if "cross" in options else [])
        }  # fmt: skip
        held = {"image": student.vision_tower, "connector": student.multi_modal_projector}
        held |= {"decoder": student.language_model, "cross": student.cross}
        for name, part in {**found.towers, **found.parts}.items():
            assert part["parameters"] == numbers(held[name]), name
        assert found.parameters == numbers(student)
        if "cross" in options:
            told = found.parts["cross"]
            every, shuffled = options["cross"].get("every"), "prompt" in options["cross"]
            assert told["mode"] == options["cross"].get("mode", "state")
            assert told["places"].startswith("before" if every is None else "behind layers 0 ")
            assert told["prompt"].startswith("shuffled" if shuffled else "its own")


@pytest.mark.parametrize(
    ("vision", "strategy", "tokens"), [("CLIP", "default", 4), ("CLIP", "full", 5), ("Siglip", "full", 4)]
)
def test_each_part_of_a_teacher(vision: str, strategy: str, tokens: int, tmp_path: Path) -> None:
    """Counted by its own modules: of the tower the one block that is read, and no norm behind it."""
    folder = llava_folder(tmp_path / "llava", vision=vision, strategy=strategy)
    found = transmamba.inspect(folder)
    assert found.kind == "llava" and found.students["llava"] is None
    assert found.parts["connector"]["tokens_a_picture"] == tokens
    assert found.parts["connector"]["reads"] == "patches" + (" and the class token" if tokens == 5 else "")
    model: Any = transmamba.ecosystems.find.load_model(folder)  # type: ignore[attr-defined]
    tower = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower)
    begin = [tower.embeddings, *([tower.pre_layrnorm] if vision == "CLIP" else [])]
    assert found.towers["image"]["parameters"] == numbers(*begin, tower.encoder.layers[0])
    assert found.towers["decoder"]["parameters"] == numbers(model.model.language_model, model.lm_head)
    assert found.parts["connector"]["parameters"] == numbers(model.model.multi_modal_projector)


def test_the_command(command: Command, teacher: Path, tmp_path: Path) -> None:
    options = ("image={kind: vim}", "decoder={kind: hybrid, attention_layers: [1]}", "cross={num_heads: 2}")
    done = command("convert", teacher, tmp_path / "s", "--student", "llava", *options)
    assert done.code == 0, done.err
    shown = command("inspect", tmp_path / "s")
    lines = shown.out.splitlines()
    assert shown.code == 0 and not shown.err, shown.err
    assert lines[0].startswith(f"{tmp_path / 's'} (student, LlavaStudent): ")
    for line in (
        "  mixers       mamba 0-1",
        "  mixers       mamba2 0, attention 1",
        "converted      image, decoder",
    ):
        assert line in lines, line
    assert any(line.startswith("decoder: hybrid, width 32, 2 blocks, reads text, ") for line in lines)
    assert any(
        line.startswith("connector      widths 24 32 32, ") and "tokens a picture 4" in line for line in lines
    )
    assert any(line.startswith("cross          mode state, places before the connector, ") for line in lines)
    plain = json.loads(command("inspect", tmp_path / "s", "--json").out)
    assert plain["parts"]["cross"]["mode"] == "state" and plain["converted"] == ["image", "decoder"]
    checked = command("inspect", tmp_path / "s", "--check")
    assert checked.code == 1 and f"evaluate {tmp_path / 's'} --task questions --teacher" in checked.err
