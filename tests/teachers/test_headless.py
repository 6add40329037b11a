"""A checkpoint without a trained head teaches features; it never tells random classes apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from transmamba import Distiller, adapt_teacher, convert, load_teacher
from transmamba.core.output import Capture
from transmamba.ecosystems.transformers import load_hugging_face
from transmamba.errors import UserError
from transmamba.teachers.teacher import Teacher

SHAPE: dict[str, Any] = dict(
    image_size=8, patch_size=2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_channels=3
)
BACKBONES = (
    "ViTModel",
    "ViTForMaskedImageModeling",
    "DeiTModel",
    "DeiTForMaskedImageModeling",
    "Dinov2Model",
)


def backbone(kind: str, **changes: Any) -> Any:
    family = (
        kind.removesuffix("Model")
        .removesuffix("ForMaskedImageModeling")
        .removesuffix("ForImageClassification")
    )
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def last_stream(teacher: Teacher, images: Tensor) -> Tensor:
    """After the last norm, as the libraries give it."""
    tower = teacher.view.towers["image"]
    last = len(tower.sublayers) - 1
    output = teacher(images, {"image": Capture(hidden=frozenset({last}))})
    assert output.logits is None
    hidden = output.stream.hidden[last]
    return hidden if tower.norm is None else tower.norm(hidden)


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_hugging_face_backbone_teaches_features(kind: str, tmp_path: Path) -> None:
    model, images = backbone(kind), torch.randn(2, 3, 8, 8)
    model.save_pretrained(tmp_path)
    base = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        wanted = base(pixel_values=images).last_hidden_state
    for teacher in (load_teacher(tmp_path), load_teacher(tmp_path), adapt_teacher(model)):
        assert teacher.num_classes is None and teacher.class_names is None and not teacher.view.heads
        torch.testing.assert_close(last_stream(teacher, images), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_timm_backbone_teaches_features(pool: str, make_vit: Callable[..., Any]) -> None:
    model, images = make_vit(num_classes=0, global_pool=pool), torch.randn(2, 1, 8, 8)
    teacher = adapt_teacher(model)
    assert teacher.num_classes is None and not teacher.view.heads
    with torch.no_grad():
        torch.testing.assert_close(
            last_stream(teacher, images), model.forward_features(images), rtol=1e-4, atol=1e-4
        )


def test_dinov2_is_exact_with_and_without_a_head(tmp_path: Path) -> None:
    model, images = (
        backbone("Dinov2ForImageClassification", num_labels=3, layerscale_value=0.5),
        torch.randn(2, 3, 8, 8),
    )
    model.save_pretrained(tmp_path)
    made = load_teacher(tmp_path)(images).logits
    assert made is not None
    with torch.no_grad():
        torch.testing.assert_close(made(), model(images).logits, rtol=1e-4, atol=1e-4)


def test_dinov2_takes_pictures_of_its_processor_s_size(tmp_path: Path) -> None:
    """Published ones are trained at 518 pixels and used at 224: their own code resizes their positions."""
    model = backbone("Dinov2Model", image_size=14)
    model.save_pretrained(tmp_path)
    transformers.BitImageProcessor(
        size={"shortest_edge": 12}, crop_size={"height": 8, "width": 8}, do_center_crop=True
    ).save_pretrained(tmp_path)
    teacher, images = load_teacher(tmp_path), torch.randn(1, 3, 8, 8)
    assert teacher.preprocessing.input_size == (3, 8, 8)
    with torch.no_grad():
        wanted = model(pixel_values=images).last_hidden_state
    torch.testing.assert_close(last_stream(teacher, images), wanted, rtol=1e-4, atol=1e-4)


def test_a_trained_head_is_kept(tmp_path: Path) -> None:
    backbone("ViTForImageClassification", num_labels=3).save_pretrained(tmp_path)
    assert load_teacher(tmp_path).num_classes == 3


def test_a_checkpoint_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    backbone("ViTModel").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in state if name.endswith("layernorm_before.weight"))
    save_file(
        {name: t for name, t in state.items() if name != gone},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(UserError, match=r"lacks .*layernorm_before\.weight") as error:
        load_teacher(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification", "Dinov2Model"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(num_hidden_layers=1), "holds what its config has no place for: "),
        (dict(patch_size=4), "its config says"),
    ],
)
def test_a_config_that_disagrees_with_its_weights_is_refused(
    kind: str, change: dict[str, int], said: str, tmp_path: Path
) -> None:
    """Fewer blocks would be another model, without a word."""
    backbone(kind).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("stage_names", "out_features", "out_indices"):
        config.pop(name, None)  # Dinov2's list of blocks
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=said) as error:
        load_teacher(tmp_path)
    assert "\n" not in str(error.value)
    if "num_hidden_layers" in change:
        with pytest.raises(UserError, match=said):
            load_hugging_face(str(tmp_path), num_classes=3)


@pytest.mark.parametrize("kind", ["ViTForImageClassification", "ViTModel", "Dinov2Model"])
def test_a_head_alone_is_made_anew_for_other_classes(kind: str, tmp_path: Path) -> None:
    """Everything else is the checkpoint's: what is missing or of another shape is named, all in one line."""
    original = backbone(kind)
    original.save_pretrained(tmp_path)
    model: Any = load_hugging_face(str(tmp_path), num_classes=7)
    assert model.classifier.weight.shape[0] == 7
    theirs = original.state_dict()
    for name, tensor in model.base_model.state_dict().items():
        found = [theirs[key] for key in (name, f"{model.base_model_prefix}.{name}") if key in theirs]
        torch.testing.assert_close([tensor], found)

    state = load_file(tmp_path / "model.safetensors")
    embedding, norm = (
        next(key for key in state if end in key) for end in ("position_embeddings", "layernorm.weight")
    )
    spoilt = {**state, embedding: state[embedding][:, :-1].clone()}
    del spoilt[norm]
    save_file(spoilt, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError) as error:
        load_hugging_face(str(tmp_path), num_classes=7)
    said = str(error.value)
    assert "position_embeddings is (1, " in said and "it lacks " in said and "layernorm.weight" in said
    assert "classifier" not in said and "\n" not in said


@pytest.mark.parametrize("student", ["vim", "ssd_vit"])
@pytest.mark.parametrize("classes", [None, 4])
def test_a_student_of_a_backbone_has_the_user_s_classes_or_none(
    student: str, classes: int | None, make_vit: Callable[..., Any]
) -> None:
    made, report = convert(make_vit(num_classes=0), student, num_classes=classes)
    assert made.num_classes == (classes or 0)
    assert made(torch.randn(2, 1, 8, 8)).shape == (2, classes or 64)
    heads = [row.kind for row in report.rows if row.target.startswith("head.")]
    assert heads == ["fresh"] * (2 if classes else 0)


def test_a_loss_on_classes_says_that_there_are_none(make_vit: Callable[..., Any]) -> None:
    teacher = adapt_teacher(make_vit(num_classes=0))
    student = timm.create_model("vim_micro_patch2_8", depth=6, in_chans=1, num_classes=4)
    with pytest.raises(UserError, match="kl compares classes, but the teacher has 0"):
        Distiller(student, teacher, ["kl"])
    assert Distiller(student, teacher, ["feature", "cross_entropy"]).weights


def test_a_vim_of_a_backbone_without_class_token_pools(make_vit: Callable[..., Any]) -> None:
    made: Any = convert(make_vit(num_classes=0, class_token=False, global_pool="avg"), "vim")[0]
    assert made.global_pool == "avg"
