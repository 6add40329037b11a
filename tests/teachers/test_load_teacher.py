"""What a user may call a teacher, and that a teacher is held and not owned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from transmamba import Distiller, Teacher, adapt_teacher, load_teacher
from transmamba.canonical import map_tensors
from transmamba.data.preprocessing import Preprocessing
from transmamba.errors import UserError
from transmamba.registry import TEACHERS
from transmamba.student import save_model


def tensors_of(teacher: Teacher) -> list[Tensor]:
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(teacher.view, collect)
    return tensors


def logits(teacher: Teacher, images: Tensor) -> Tensor:
    found = teacher(images).logits
    assert found is not None
    return found


def save_vit(folder: Path, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    shape = dict(img_size=8, patch_size=2, in_chans=1, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **{**shape, **options}).eval()
    looks = Preprocessing(input_size=(1, 8, 8), mean=(0.25,), std=(0.125,), interpolation="bilinear")
    save_model(model, folder, looks)
    return model


@pytest.mark.parametrize("where", ["student", "."])
def test_run_folder_and_model_folder(where: str, tmp_path: Path, gray_images: Tensor) -> None:
    model = save_vit(tmp_path / where, global_pool="avg", init_values=0.5)
    teacher = load_teacher(tmp_path)
    assert torch.equal(logits(teacher, gray_images), logits(adapt_teacher(model), gray_images))
    assert teacher.preprocessing == Preprocessing((1, 8, 8), (0.25,), (0.125,), "bilinear")
    assert teacher.source == str(tmp_path)


def test_hugging_face_folder(tmp_path: Path) -> None:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, DeiTImageProcessor

    config = DeiTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=3
    )
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    DeiTImageProcessor(
        size={"height": 10, "width": 10}, crop_size={"height": 8, "width": 8}, image_mean=[0.1, 0.2, 0.3]
    ).save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    assert [name for name, _ in teacher.view.heads] == ["cls", "dist"]
    assert teacher.preprocessing.input_size == (3, 8, 8)
    assert teacher.preprocessing.mean == (0.1, 0.2, 0.3)


def test_timm_name_becomes_a_timm_teacher(
    monkeypatch: pytest.MonkeyPatch, make_vit: Callable[..., Any]
) -> None:
    model = make_vit()
    asked: list[tuple[str, bool]] = []

    def create(name: str, *, pretrained: bool, **_: Any) -> nn.Module:
        asked.append((name, pretrained))
        return model

    monkeypatch.setattr(timm, "create_model", create)
    for name in ("vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k", "hf-hub:timm/vit", "timm/vit"):
        assert load_teacher(name).num_blocks == 3
    assert asked == [
        ("vit_tiny_patch16_224", True),
        ("vit_tiny_patch16_224.augreg_in21k", True),
        ("hf-hub:timm/vit", True),
        ("hf-hub:timm/vit", True),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "vit_tiny_patch16_2244",
        "./nowhere",
        "/nowhere/at/all",
        "~/nowhere",
        "nobody/nothing",
        "hf-hub:no/no",
        "",
    ],
)
def test_unknown_name_is_one_line(source: str) -> None:
    with pytest.raises(UserError) as error:
        load_teacher(source)
    assert "\n" not in str(error.value) and repr(source)[1:-1] in str(error.value)


def test_model_folder_of_something_else_is_said_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError) as error:
        load_teacher(tmp_path)
    assert "\n" not in str(error.value) and "no such folder" not in str(error.value)


def test_broken_config_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("name", ["vim_micro_patch2_8", "ssd_vit_micro_patch2_8", "resnet10t"])
def test_a_model_that_is_no_vit_is_refused(name: str, tmp_path: Path) -> None:
    model = timm.create_model(name, num_classes=3)
    save_model(model, tmp_path)
    with pytest.raises(UserError) as error:
        load_teacher(tmp_path)
    assert "\n" not in str(error.value)


def test_bare_timm_config_of_an_unknown_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_of_nobody"}))
    with pytest.raises(UserError):
        load_teacher(tmp_path)


@pytest.mark.parametrize("broken", ["absent", "other", "text"])
def test_mnist_checkpoint_of_another_kind(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    if broken == "other":
        torch.save({"weight": torch.zeros(1)}, path)
    elif broken == "text":
        path.write_text("hello")
    with pytest.raises(UserError, match=r"model\.pth"):
        TEACHERS["vit_mnist_mit"](checkpoint=str(path)).build()


def test_teacher_is_held_and_not_owned(make_vit: Callable[..., Any], gray_images: Tensor) -> None:
    model = make_vit(drop_rate=0.5, init_values=0.1)
    teacher = adapt_teacher(model.train())
    assert not isinstance(teacher, nn.Module)
    tensors = tensors_of(teacher)
    assert tensors and not any(t.requires_grad or isinstance(t, nn.Parameter) for t in tensors)
    # whatever holds the teacher gets no parameter of it, and train() reaches nothing
    holder: Any = nn.Module()
    holder.teacher = teacher
    holder.layer = nn.Linear(1, 1)
    assert len(list(holder.parameters())) == 2 and set(holder.state_dict()) == {"layer.weight", "layer.bias"}
    before = logits(teacher, gray_images)
    holder.train()
    assert torch.equal(logits(teacher, gray_images), before) and not before.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters()), "the user's model is theirs"


def test_gradients_stop_at_the_teacher(make_teacher: Callable[..., Teacher], gray_images: Tensor) -> None:
    teacher = make_teacher()
    assert not logits(teacher, gray_images.clone().requires_grad_()).requires_grad


def test_distiller_holds_no_tensor_of_the_teacher(make_teacher: Callable[..., Teacher]) -> None:
    teacher = make_teacher()
    theirs = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(teacher)}
    student = timm.create_model("vim_micro_patch2_8", depth=6, in_chans=1, num_classes=10)
    distiller = Distiller(student, teacher)
    mine = {t.untyped_storage().data_ptr() for t in (*distiller.parameters(), *distiller.buffers())}
    assert mine and not mine & theirs
    assert not any(value is teacher for value in distiller.modules())


def test_teacher_moves(make_teacher: Callable[..., Teacher]) -> None:
    teacher = make_teacher(reg_tokens=1)
    assert {tensor.device.type for tensor in tensors_of(teacher.to("meta"))} == {"meta"}
