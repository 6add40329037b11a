"""A Vim whose attention layers begin as averages, against attention that is an average."""

from __future__ import annotations

from typing import Any

import harness
import pytest
import torch
from torch import Tensor, nn

from transmamba import UserError, adapt_teacher, convert, image_batch
from transmamba.distillation.distiller import Distiller
from transmamba.layers.bidirectional import BidirectionalMamba
from transmamba.losses.mixer import Mixer
from transmamba.subcloning.subclone import SubcloneConfig


def uniform_vit() -> Any:
    """A random ViT whose queries are zero: every token attends to all alike."""
    model: Any = harness.tiny_vit()
    with torch.no_grad():
        for block in model.blocks:
            width = block.attn.qkv.in_features
            block.attn.qkv.weight[:width].zero_()
            if block.attn.qkv.bias is not None:
                block.attn.qkv.bias[:width].zero_()
    return model


def converted(images: Tensor, **init: Any) -> tuple[nn.Module, Any]:
    model = uniform_vit()
    options = SubcloneConfig(layers="all", mimic=True, fold=True, **init)
    student, _ = convert(
        model, "vim_micro_patch2_8", calibration=[images], init=options, **{**SHAPE, "gate_bias": True}
    )
    return model, student


SHAPE: dict[str, Any] = dict(harness.VIM, img_size=8, embed_dim=16)


def attention_cosines(model: nn.Module, student: Any, images: Tensor) -> list[float]:
    """Cosine of the attention layers with the teacher's, on the teacher's own inputs."""
    distiller = Distiller(student, adapt_teacher(model).fold(), (Mixer(),))
    batch = image_batch(images, torch.zeros(len(images), dtype=torch.long))
    similarity = distiller(batch)["mixer"].parts
    assert similarity is not None
    return [float(similarity[k]) / len(images) for k in range(0, 4, 2)]


def test_a_mixer_averages_its_values() -> None:
    """out_proj of the mean over the tokens of V u, in float64, at every token, whatever the sequence."""
    torch.manual_seed(0)
    dim, length = 96, 50
    mixer = BidirectionalMamba(dim, gate_bias=True)
    u = nn.functional.rms_norm(torch.randn(8, length, dim) + torch.randn(8, 1, dim), (dim,))
    with torch.no_grad():
        mixer.mimic_()
        mixer.in_proj.weight[dim : 2 * dim] = -mixer.in_proj.weight[:dim]
        mixer.out_proj.weight[:, dim:] = -mixer.out_proj.weight[:, :dim]
        mixer.average_(length)
        mixer.level_([mixer(u).parts])
        parts = mixer(u).parts
        made = mixer(u).output.double()
    for suffix in ("", "_b"):
        assert not parts[f"C{suffix}"][..., 1:].any(), "one state alone is read"
        level = (parts[f"B{suffix}"] * parts[f"C{suffix}"])[..., 0].mean()
        assert float(level) == pytest.approx(2, rel=0.1)
    values = u.double().mean(dim=1) @ mixer.in_proj.weight[:dim].double().T
    wanted = (values @ mixer.out_proj.weight[:, :dim].double().T)[:, None]
    assert float((made - wanted).square().sum() / wanted.expand_as(made).square().sum()) < 0.05


def test_uniform_attention_is_closer_than_mamba_s_own_start() -> None:
    """Cosine with what the teacher's attention adds. Started as Mamba starts, a token passes itself on."""
    images = harness.tiny_batch(16).inputs["image"]
    averaged = attention_cosines(*converted(images, average=True), images)
    plain = attention_cosines(*converted(images), images)
    assert min(averaged) > 0.7 > max(plain) + 0.1, (averaged, plain)


def test_values_pass_the_activation_unbent() -> None:
    """The inner channels' pairs: silu(v) - silu(-v) = v, so doubling the values doubles what is written."""
    images = harness.tiny_batch(4).inputs["image"]
    _, student = converted(images, average=True)
    mixer: Any = student.layers[0].mixer  # type: ignore[union-attr,index]
    half = mixer.inner // 2
    weight = mixer.in_proj.weight[: mixer.inner]
    torch.testing.assert_close(weight[:half], -weight[half:])
    torch.testing.assert_close(mixer.out_proj.weight[:, :half], -mixer.out_proj.weight[:, half:])
    torch.testing.assert_close(mixer.conv1d.bias[:half], -mixer.conv1d.bias[half:])
    v = torch.randn(64)
    torch.testing.assert_close(nn.functional.silu(v) - nn.functional.silu(-v), v)


def test_only_attention_layers_that_are_cloned_average() -> None:
    images = harness.tiny_batch(4).inputs["image"]
    model = uniform_vit()
    init = SubcloneConfig(layers=2, mimic=True, average=True)
    student, _ = convert(
        model, "vim_micro_patch2_8", calibration=[images], init=init, **{**SHAPE, "gate_bias": True}
    )
    skips = [bool(layer.mixer.D.any()) for layer in student.layers]  # type: ignore[union-attr]
    assert skips == [False, True, True, True], "layer 1 is an MLP's, 2 and 3 are not cloned"


def test_average_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="set mimic to true"):
        SubcloneConfig(average=True)
    with pytest.raises(ValueError, match="calibration_images is -4"):
        SubcloneConfig(calibration_images=-4)
    init = SubcloneConfig(layers="all", mimic=True, average=True, importance="uniform")
    with pytest.raises(UserError, match="calibration images"):
        convert(uniform_vit(), "vim_micro_patch2_8", init=init, **{**SHAPE, "gate_bias": True})


def test_the_level_is_that_of_all_calibration_images_without_dropped_paths() -> None:
    """However they come in batches, and however often the student drops a layer in training."""
    images = harness.tiny_batch(16).inputs["image"]
    init = SubcloneConfig(layers="all", mimic=True, average=True)
    levels = []
    for batches, rate in (([images], 0.0), ([images[:2], images[2:]], 0.0), ([images], 0.9)):
        options = {**SHAPE, "gate_bias": True, "drop_path_rate": rate}
        torch.manual_seed(0)
        student: Any = convert(
            uniform_vit(), "vim_micro_patch2_8", calibration=batches, init=init, **options
        )[0]
        levels.append(
            [layer.mixer.x_proj.weight[layer.mixer.rank, 0].item() for layer in student.layers[::2]]
        )
    assert levels[0] == pytest.approx(levels[1], rel=1e-5) == levels[2]


def test_students_without_scans_have_no_averages() -> None:
    images = harness.tiny_batch(4).inputs["image"]
    init = SubcloneConfig(layers="all", mimic=True, average=True)
    with pytest.raises(UserError, match="for Vim students; leave it out"):
        convert(uniform_vit(), "ssd_vit", calibration=[images], init=init)
