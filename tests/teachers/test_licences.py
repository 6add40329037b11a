"""Whose weights a teacher's are goes with it, into the student and onto the student's card; nothing is made
up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from transmamba import adapt_teacher, convert, load_student, load_teacher, save_student
from transmamba.config.registry import TEACHERS
from transmamba.core.tower import StudentSpec
from transmamba.ecosystems.find import card_of
from transmamba.ecosystems.timm import create_timm
from transmamba.subcloning.checkpoint import convert_checkpoint

SHAPE: dict[str, Any] = dict(img_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2, num_classes=3)
CARD = "---\nlicense: cc-by-nc-4.0\nbase_model:\n- them/theirs\n---\n# A model\n"


def vit(**config: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SHAPE)
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **config}
    return model.eval()


def hf_vit(**config: Any) -> Any:
    shape: dict[str, Any] = dict(
        image_size=8, patch_size=2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    return ViTForImageClassification(ViTConfig(**shape, **{"num_labels": 3, **config})).eval()


def test_timm_s_pretrained_cfg_says_whose() -> None:
    teacher = adapt_teacher(vit(license="mit", hf_hub_id="timm/vit_x.y"))
    assert (teacher.licence, teacher.base_model) == ("mit", "timm/vit_x.y")


def test_weights_that_nobody_trained_are_nobody_s() -> None:
    teacher = TEACHERS["timm_vit"](model="vit_tiny_patch16_224", pretrained=False, kwargs=SHAPE).build()
    assert teacher.licence is None and teacher.base_model is None


@pytest.mark.parametrize("make", [vit, hf_vit])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        (CARD, ("cc-by-nc-4.0", "them/theirs")),
        ("---\nlicense: [other, mit]\n---\n", ("other", None)),
        ("---\nlicense: {a: b\n---\n", (None, None)),
        ("no front matter\n---\nlicense: mit\n---\n", (None, None)),
        ("---\nlicense: mit\n", (None, None)),
        ("", (None, None)),
        (None, (None, None)),
    ],
)
def test_a_folder_s_model_card_says_whose(
    make: Callable[..., Any], text: str | None, found: tuple[str | None, str | None], tmp_path: Path
) -> None:
    model = make()
    if make is vit:
        model.pretrained_cfg.update(license=None, hf_hub_id=None)
    save_student(model, tmp_path)
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    teacher = load_teacher(tmp_path)
    assert (teacher.licence, teacher.base_model) == found


@pytest.mark.parametrize("student", ["vim", "ssd_vit"])
def test_a_student_carries_what_is_its_teacher_s(student: str, tmp_path: Path) -> None:
    save_student(vit(), tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    (tmp_path / "teacher" / "config.json").write_text(json.dumps({**config, "label_names": ["a", "b", "c"]}))
    (tmp_path / "teacher" / "README.md").write_text(CARD)
    convert_checkpoint(str(tmp_path / "teacher"), tmp_path / "out", student=student)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "base_model: them/theirs" in card
    (tmp_path / "out" / "README.md").unlink()  # the config alone tells
    loaded: Any = load_student(tmp_path / "out")
    facts: Any = card_of(loaded)
    assert (facts.licence, facts.base_model) == ("cc-by-nc-4.0", "them/theirs")
    assert list(loaded.pretrained_cfg["label_names"]) == ["a", "b", "c"]


def test_a_student_claims_no_licence_where_its_teacher_has_none(tmp_path: Path) -> None:
    made = convert(vit(license=None, hf_hub_id=None))[0]
    save_student(made, tmp_path)
    assert "license" not in json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    fresh: nn.Module = timm.create_model("vim_micro_patch2_8", depth=1)
    facts: Any = card_of(fresh)
    assert facts.licence is None


def test_a_fine_tuned_model_keeps_its_origin(tmp_path: Path) -> None:
    save_student(vit(), tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text(CARD)
    again = create_timm(str(tmp_path / "a"), pretrained=True)
    save_student(again, tmp_path / "b")
    facts: Any = card_of(load_student(tmp_path / "b"))
    assert (facts.licence, facts.base_model) == ("cc-by-nc-4.0", "them/theirs")


def test_an_id_is_its_own_base_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))

    def fetch(repo: str, file: str, revision: str | None = None) -> Path:
        assert (repo, revision) == ("somebody/vit", "v1")
        return tmp_path / file

    monkeypatch.setattr("transmamba.ecosystems.hub.fetch", fetch)
    monkeypatch.setattr("transmamba.teachers.hf_vit.load_hugging_face", lambda *_: hf_vit())
    monkeypatch.setattr("transmamba.ecosystems.processor._find", lambda *_: None)
    for name in ("somebody/vit@v1", "hf-hub:somebody/vit@v1"):
        teacher = load_teacher(name)
        assert (teacher.licence, teacher.base_model) == ("mit", "somebody/vit")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({0: "cat", 1: "dog", 2: "eel"}, ("cat", "dog", "eel")),
        ({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, None),
        ({0: "0", 1: "1", 2: "10"}, ("0", "1", "10")),
    ],
)
def test_class_names_of_hugging_face(names: dict[int, str], expected: Any) -> None:
    assert adapt_teacher(hf_vit(id2label=names, num_labels=3)).class_names == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b", "c"], ("a", "b", "c")),
        ({"0": "a", "1": "b", "2": "c"}, ("a", "b", "c")),
        ({"0": "a", "2": "c"}, None),
        (["a", "b"], None),
        (None, None),
    ],
)
def test_class_names_of_timm(names: Any, expected: Any) -> None:
    assert adapt_teacher(vit(label_names=names)).class_names == expected


def test_fresh_students_of_a_recipe_claim_nothing() -> None:
    from transmamba.config.registry import STUDENTS

    part = STUDENTS["timm"](model="vit_tiny_patch16_224", kwargs=SHAPE)
    facts: Any = card_of(part.build(StudentSpec(num_classes=3)))
    assert facts.licence is None


def test_a_run_s_student_carries_it_too(tmp_path: Path) -> None:
    from transmamba.config import load as configs
    from transmamba.runs.recipe import Recipe
    from transmamba.runs.run import run

    save_student(vit(), tmp_path / "teacher")
    (tmp_path / "teacher" / "README.md").write_text(CARD)
    data = dict(name="synthetic", num_train=8, num_test=4, num_classes=3, size=8)
    recipe = dict(
        output_dir=str(tmp_path / "run"),
        task=dict(name="image_classification", data=data),
        teacher=dict(name="timm_vit", model=str(tmp_path / "teacher")),
        student=dict(name="vim", kwargs=dict(depth=2, d_state=4)),
        init=dict(importance="uniform", calibration_images=0),
        stages=[dict(name="s", losses=["kl"], steps=1, lr=1e-3)],
        trainer=dict(global_batch=4, micro_batch=4, eval_batch_size=4),
    )
    run(configs.parse(Recipe, recipe, "tiny"), quiet=True)
    student = tmp_path / "run" / "student"
    card = (student / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "base_model: them/theirs" in card
    assert json.loads((student / "config.json").read_text())["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
