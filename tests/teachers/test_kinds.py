"""A teacher of another kind, given to a recipe or to convert: named, with what it is and what to write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import run_quietly, tiny_recipe, tiny_vit

from transmamba import UserError
from transmamba.config.registry import TEACHERS
from transmamba.ecosystems.find import save_model
from transmamba.subcloning.checkpoint import convert_checkpoint
from transmamba.teachers.kinds import check_kind

sys.path.insert(0, str(Path(__file__).parent))
from decoders_made import make


def hugging_face_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    vision = dict(shape, image_size=8, patch_size=4)
    CLIPModel(CLIPConfig(text_config=dict(shape, vocab_size=50), vision_config=vision)).save_pretrained(
        folder
    )


MADE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "causal_lm": (lambda folder: make("Llama 2").save_pretrained(folder), "a language model"),
    "timm_vit": (lambda folder: save_model(tiny_vit(), folder), "an image model of timm"),
    "hf_clip": (hugging_face_clip, "a CLIP or SigLIP of Hugging Face"),
}
NAMES = ["causal_lm", "hf_clip", "hf_vit", "llava", "open_clip", "sequence", "timm_vit"]


@pytest.mark.parametrize("kind", MADE)
def test_every_teacher_tells_the_others_apart(kind: str, tmp_path: Path) -> None:
    save, what = MADE[kind]
    save(tmp_path / "m")
    for name in NAMES:
        part = TEACHERS[name](model=str(tmp_path / "m"))
        if name == kind:
            check_kind(part)
            continue
        with pytest.raises(UserError) as error:
            check_kind(part)
        said = str(error.value)
        assert said.startswith(f"teacher {str(tmp_path / 'm')!r} is {what}, and the teacher {name} reads")
        assert f"teacher.name={kind} (auto" in said and "\n" not in said
    check_kind(TEACHERS["auto"](model=str(tmp_path / "m")))


def test_a_recipe_is_told_before_anything_is_read(tmp_path: Path) -> None:
    make("Llama 2").save_pretrained(tmp_path / "lm")
    recipe = tiny_recipe(tmp_path, teacher__model=str(tmp_path / "lm"))
    with pytest.raises(UserError, match="lm' is a language model, and the teacher timm_vit reads"):
        run_quietly(recipe)
    stored = dict(name="stored", folder=str(tmp_path / "s"), teacher=dict(name="timm_vit", model="x"))
    stored["teacher"]["model"] = str(tmp_path / "lm")  # type: ignore[index]
    with pytest.raises(UserError, match="lm' is a language model, and the teacher timm_vit reads"):
        run_quietly(tiny_recipe(tmp_path, teacher=stored))


@pytest.mark.parametrize(
    ("kind", "student", "said"),
    [
        (
            "causal_lm",
            "vim",
            "needs a teacher of images; this one is a language model, whose.*--student hybrid_lm",
        ),
        ("causal_lm", "clip", "embeds images.*this one is a language model"),
        ("causal_lm", "llava", "needs a LLaVA.*this one is a language model"),
        ("causal_lm", "sequence", "a teacher of points; this one is a language model"),
        ("timm_vit", "hybrid_lm", "language model with its head; this one is an image model.*--student vim"),
        ("timm_vit", "sequence", "a teacher of points; this one is an image model.*--student vim"),
    ],
)
def test_convert_names_the_folder_and_the_student(kind: str, student: str, said: str, tmp_path: Path) -> None:
    MADE[kind][0](tmp_path / "m")
    with pytest.raises(UserError, match=rf"^teacher '\S+/m': .*{said}") as error:
        convert_checkpoint(str(tmp_path / "m"), tmp_path / "out", student=student)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_the_library_says_it_too(tmp_path: Path) -> None:
    """Where a teacher is asked directly."""
    make("Llama 2").save_pretrained(tmp_path / "lm")
    save_model(tiny_vit(), tmp_path / "vit")
    with pytest.raises(UserError, match=r"lm' is no model of timm: .* the model_type llama of transformers"):
        TEACHERS["timm_vit"](model=str(tmp_path / "lm")).build()
    with pytest.raises(UserError, match=r"teacher '\S+/vit' \(model_type=timm_wrapper\) cannot be expressed"):
        TEACHERS["causal_lm"](model=str(tmp_path / "vit")).build()
