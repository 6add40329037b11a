"""`convert`: a student made from a model in hand, which is left as it was; teachers with a norm after their
embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from transmamba import SubcloneConfig, Teacher, UserError, adapt_teacher, convert
from transmamba.ecosystems.find import save_model
from transmamba.views.sublayers import map_tensors

FOLDED = SubcloneConfig(importance="uniform", fold=True)
# the class token of a Vim stands in the middle of 16 patches
ORDER = [*range(1, 9), 0, *range(9, 17)]


def tensors_of(teacher: Teacher) -> list[Tensor]:
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(teacher.view, collect)
    return found


@pytest.mark.parametrize("fold", [False, True])
def test_the_teacher_is_left_as_it_is(fold: bool, make_vit: Callable[..., Any], gray_images: Tensor) -> None:
    """Neither its tensors nor what it says of itself; a second student starts from the same."""
    model = make_vit(init_values=0.1)
    teacher = adapt_teacher(model)
    view, tensors = teacher.view, tensors_of(teacher)
    copies = [tensor.clone() for tensor in tensors]
    init = SubcloneConfig(importance="uniform", fold=fold)
    first, _ = convert(teacher, "vim", init=init)
    assert teacher.view is view and not teacher.folded
    assert all(a is b for a, b in zip(tensors_of(teacher), tensors, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
    with torch.no_grad():
        torch.testing.assert_close(teacher(gray_images).logits(), model(gray_images), rtol=1e-5, atol=1e-5)
    second, _ = convert(teacher, "vim", init=init)
    cloned = {name for name, p in first.named_parameters() if "norm" in name or "embed" in name}
    assert cloned and all(torch.equal(first.state_dict()[name], second.state_dict()[name]) for name in cloned)


def test_folding_twice_is_folding_once(make_teacher: Callable[..., Teacher]) -> None:
    teacher = make_teacher()
    folded = teacher.fold()
    assert folded is not teacher and folded.folded and not teacher.folded
    assert folded.fold() is folded
    assert folded.preprocessing is teacher.preprocessing and folded.num_params == teacher.num_params


@pytest.mark.parametrize("fold", [False, True])
def test_vim_takes_the_norm_after_the_embedding(
    fold: bool, make_vit: Callable[..., Any], gray_images: Tensor
) -> None:
    """Its stream begins as timm's own does, folded with each token's mean taken out."""
    model = make_vit(pre_norm=True)
    student: Any
    student, report = convert(model, "vim", init=FOLDED if fold else None)
    with torch.no_grad():
        wanted = model.norm_pre(model._pos_embed(model.patch_embed(gray_images)))[:, ORDER]
        found = student._embed(gray_images)
    if fold:
        wanted = wanted - wanted.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert {"norm_pre.weight", "norm_pre.bias"} <= report.cloned
    assert not any(drop.source.startswith("embedding") for drop in report.dropped)


def test_folded_layers_read_what_the_teacher_s_values_were(
    make_vit: Callable[..., Any], gray_images: Tensor
) -> None:
    """RMSNorm and in_proj of the centred stream = LayerNorm and V of the teacher's, biases included."""
    model = make_vit(pre_norm=True)
    student: Any = convert(model, "vim", init=FOLDED, proj_bias=True)[0]
    layer, block = student.layers[0], model.blocks[0]
    layer.norm.eps = block.norm1.eps
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(gray_images)))
        values = block.attn.qkv(block.norm1(x))[:, ORDER, 128:]
        read = layer.mixer.in_proj(layer.norm(student._embed(gray_images)))[..., :64]
    torch.testing.assert_close(read, values, rtol=1e-4, atol=1e-5)


def test_a_vim_with_that_norm_is_saved_and_loaded(
    tmp_path: Path, make_vit: Callable[..., Any], gray_images: Tensor
) -> None:
    student = convert(make_vit(pre_norm=True), "vim", init=FOLDED, embed_dim=24)[0]
    save_model(student, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(gray_images), student(gray_images))


def test_a_vim_without_a_place_for_it_says_so(make_vit: Callable[..., Any]) -> None:
    _, report = convert(make_vit(pre_norm=True), "vim", pre_norm="")
    assert {drop.source: drop.why for drop in report.dropped}["embedding.norm"].endswith("set pre_norm")
    with pytest.raises(UserError, match="pre_norm is 'batch'; write 'layer', 'centred', 'rms' or ''"):
        convert(make_vit(), "vim", pre_norm="batch")


def test_an_ssd_vit_cannot_centre_it(make_vit: Callable[..., Any], gray_images: Tensor) -> None:
    model = make_vit(pre_norm=True)
    with pytest.raises(UserError, match=r"set init\.fold to false"):
        convert(model, "ssd_vit", init=FOLDED)
    student = convert(model, "ssd_vit", attention_layers=[0, 1, 2])[0]
    with torch.no_grad():
        torch.testing.assert_close(student(gray_images), model(gray_images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fold", [False, True])
def test_a_vim_begins_with_its_teacher_s_rms_norm(make_vit: Callable[..., Any], fold: bool) -> None:
    """Not with a LayerNorm of its weights: the stream that the first layer reads is the teacher's."""
    teacher = adapt_teacher(make_vit(pre_norm=True, norm_layer="rmsnorm"))
    student, report = convert(teacher, "vim", init=SubcloneConfig(importance="uniform", fold=fold))
    assert isinstance(student.norm_pre, torch.nn.RMSNorm) and not student.centred
    norm = teacher.view.towers["image"].embedding.norm
    stream = torch.randn(2, 5, 64)
    with torch.no_grad():
        torch.testing.assert_close(student.norm_pre(stream), norm(stream))
    assert {row.kind for row in report.rows if row.target == "norm_pre.weight"} == {"copied"}


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 8)])
def test_calibration_images_are_the_teacher_s(make_vit: Callable[..., Any], shape: tuple[int, ...]) -> None:
    model = make_vit()
    wanted = adapt_teacher(model).preprocessing.input_size
    assert shape != wanted
    with pytest.raises(UserError) as error:
        convert(model, calibration=[torch.randn(2, *shape)])
    assert str(shape) in str(error.value) and str(wanted) in str(error.value)
