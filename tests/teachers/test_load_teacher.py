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
from transmamba.config.registry import TEACHERS
from transmamba.core.preprocessing import Preprocessing
from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError
from transmamba.views.sublayers import map_tensors


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
    return found()


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
    assert [name for name, _ in teacher.view.heads["image"].readouts] == ["cls", "dist"]
    assert teacher.preprocessing.input_size == (3, 8, 8)
    assert teacher.preprocessing.mean == (0.1, 0.2, 0.3)
    assert teacher.preprocessing.crop_pct == pytest.approx(8 / 10)
    assert teacher.preprocessing.crop_mode == "squash" and teacher.preprocessing.interpolation == "bicubic"


def hf_model(kind: str = "ViT", image_size: int = 8) -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        image_size=image_size,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
    )
    return getattr(transformers, f"{kind}ForImageClassification")(config)


@pytest.mark.parametrize(
    ("size", "crop", "mode"),
    [
        ({"height": 256, "width": 256}, {"height": 224, "width": 224}, "squash"),  # transformers 5
        ({"shortest_edge": 256}, {"height": 224, "width": 224}, "center_down"),
        (256, 224, "squash"),  # before 4.26
        ([256, 256], [224, 224], "squash"),
    ],
)
def test_every_way_a_processor_gives_its_size(size: Any, crop: Any, mode: str, tmp_path: Path) -> None:
    hf_model("DeiT", 224).save_pretrained(tmp_path)
    processor = {"size": size, "crop_size": crop, "do_center_crop": True, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    looks = load_teacher(tmp_path).preprocessing
    assert looks.crop_pct == pytest.approx(224 / 256) and looks.crop_mode == mode
    processor["do_center_crop"] = False
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    said = (
        "without do_center_crop"
        if mode == "center_down"
        else "pictures of 256 x 256 pixels.* takes 224 x 224"
    )
    with pytest.raises(UserError, match=said):
        load_teacher(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"size": "big", "do_center_crop": true}', '{"image_mean": 3}'])
def test_damaged_processor_is_one_line(text: str, tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=r"preprocessor_config\.json") as error:
        load_teacher(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_without_a_processor_the_defaults_are_the_kind_s_own() -> None:
    looks = adapt_teacher(hf_model("DeiT")).preprocessing
    assert looks.mean == (0.485, 0.456, 0.406) and looks.std == (0.229, 0.224, 0.225)
    assert looks.interpolation == "bicubic" and looks.crop_mode == "center"
    assert looks.crop_pct == pytest.approx(224 / 256)
    looks = adapt_teacher(hf_model("ViT")).preprocessing
    assert looks == Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "squash")


def test_a_module_that_came_from_a_folder_brings_its_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    module = type(hf_model()).from_pretrained(tmp_path)
    teacher = adapt_teacher(module)
    assert teacher.preprocessing.mean == (0.1, 0.2, 0.3)
    assert teacher.source == "ViTForImageClassification"

    def network(*_: Any, **__: Any) -> Any:
        raise AssertionError("adapting a module reached for the network")

    monkeypatch.setattr("transformers.utils.hub.cached_file", network)
    module.name_or_path = module.config._name_or_path = "somebody/vit"
    assert adapt_teacher(module).preprocessing.mean == (0.5, 0.5, 0.5)


def test_the_processor_of_an_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    answer: list[Any] = []

    def cached_file(name: str, file: str, *, revision: str | None = None, **_: Any) -> Any:
        asked.append((name, file, revision))
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    path = tmp_path / "found.json"
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    monkeypatch.setattr("transformers.utils.hub.cached_file", cached_file)
    monkeypatch.setattr("transmamba.teachers.hf_vit.load_hugging_face", lambda *_: hf_model())
    named = TEACHERS["hf_vit"](model="somebody/vit", revision="abc")
    answer[:] = [str(path)]
    assert named.build().preprocessing.mean == (0.1, 0.2, 0.3)
    assert asked[-1] == ("somebody/vit", "preprocessor_config.json", "abc")
    answer[:] = [None]  # the repository has none
    assert named.build().preprocessing.mean == (0.5, 0.5, 0.5)
    answer[:] = [OSError("We couldn't connect\nto the Hub")]
    with pytest.raises(UserError, match=r"somebody/vit: .*couldn't connect$"):
        named.build()


def test_timm_name_becomes_a_timm_teacher(
    monkeypatch: pytest.MonkeyPatch, make_vit: Callable[..., Any]
) -> None:
    model = make_vit()
    asked: list[tuple[str, bool]] = []

    def create(name: str, *, pretrained: bool, **_: Any) -> nn.Module:
        if pretrained:
            asked.append((name, pretrained))
        return model

    monkeypatch.setattr(timm, "create_model", create)
    for name in ("vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k", "hf-hub:timm/vit", "timm/vit"):
        assert len(load_teacher(name).view.towers["image"].ends) == 3
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
