"""The principal axes against numpy's, and what a narrower student keeps of a teacher turned into them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import transmamba
from transmamba import SubcloneConfig, UserError, adapt_teacher
from transmamba.outputs import Capture
from transmamba.rotation import principal_axes
from transmamba.run import assemble, make_accelerator
from transmamba.selection import Selection
from transmamba.subclone import subclone
from transmamba.teacher import Teacher

WIDTH = 24


def pictures(count: int = 24) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def make_vim(width: int = WIDTH, **kwargs: Any) -> Any:
    torch.manual_seed(11)
    shape = dict(embed_dim=width, depth=6, in_chans=1, num_classes=10, d_state=4, proj_bias=True)
    return timm.create_model("vim_micro_patch2_8", **{**shape, **kwargs}).eval()


@torch.no_grad()
def of_low_rank(model: Any, rank: int, beside: float = 0.0) -> Any:
    """The model with all it writes into the stream projected onto `rank` directions (times `beside` on the
    others)."""
    basis, _ = torch.linalg.qr(torch.randn(64, rank, generator=torch.Generator().manual_seed(8)))
    onto = basis @ basis.T
    onto = onto + beside * (torch.eye(64) - onto)
    linears = [linear for block in model.blocks for linear in (block.attn.proj, block.mlp.fc2)]
    for linear in linears:
        linear.weight.copy_(onto @ linear.weight)
        linear.bias.copy_(onto @ linear.bias)
    embed = model.patch_embed.proj
    embed.weight.copy_((onto @ embed.weight.flatten(1)).view_as(embed.weight))
    embed.bias.copy_(onto @ embed.bias)
    for tokens in (model.cls_token, model.pos_embed):
        tokens.copy_(tokens @ onto)
    return model


def start(model: nn.Module, rotate: str, **options: Any) -> tuple[Any, Teacher, Selection]:
    """A student 24 wide, its teacher as it is compared from then on, and what was selected."""
    teacher, student = adapt_teacher(model), make_vim()
    config = SubcloneConfig(layers="all", fold=True, rotate=rotate, **options)  # type: ignore[arg-type]
    _, select = subclone(student, teacher, config, [pictures()])
    return student, teacher, select


@torch.no_grad()
def read_errors(student: Any, teacher: Teacher, select: Selection) -> list[float]:
    """How far what the student reads of the teacher's own streams is from what the teacher reads: relative
    squared error of the values of each block, and of the logits."""
    last = teacher.num_blocks - 1
    capture = Capture(hidden=frozenset({last}), mixers=frozenset(range(last + 1)))
    output, view = teacher(pictures(), capture), teacher.view
    errors = []
    for t, block in enumerate(view.blocks):
        x = output.mixers[t]["attention_input"]
        layer = student.layers[2 * t]
        channels = select.values(t, 64, layer.mixer.inner)
        wanted = block.attention.v(block.attention.norm(x))[..., channels]
        read = layer.mixer.in_proj(layer.norm(x[..., select.residual]))[..., : layer.mixer.inner]
        errors.append(float((read - wanted).square().sum() / wanted.square().sum()))
    logits = student.head(student.norm_f(output.hidden[last][:, 0, select.residual]))
    assert output.logits is not None
    return [*errors, float((logits - output.logits).square().sum() / output.logits.square().sum())]


def test_axes_are_those_of_numpy_on_all_that_is_read(make_vit: Callable[..., Any]) -> None:
    model, streams = make_vit(), list[Tensor]()
    for norm in (model.norm, *(norm for block in model.blocks for norm in (block.norm1, block.norm2))):
        norm.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    with torch.no_grad():
        model(pictures())
    rows = torch.cat([stream.flatten(0, 1) for stream in streams]).double()
    rows = rows - rows.mean(dim=1, keepdim=True)  # as a folded teacher's stream is
    rows = rows / rows.norm(dim=1, keepdim=True)
    teacher = adapt_teacher(model)
    teacher.fold()
    axes = principal_axes(teacher.view, pictures().split(7))
    assert axes.dtype == torch.float64
    torch.testing.assert_close(axes.T @ axes, torch.eye(64).double(), rtol=0, atol=1e-12)
    _, sizes, wanted = np.linalg.svd(rows.numpy(), full_matrices=False)
    moment = axes.T @ rows.T @ rows @ axes
    np.testing.assert_allclose(moment.diagonal().numpy(), sizes**2, rtol=1e-4, atol=1e-3)
    assert np.abs(np.sum(wanted[:8] * axes[:, :8].T.numpy(), axis=1)).min() > 0.999
    assert bool((axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)) > 0).all()), "signs are fixed"


def test_the_longest_streams_do_not_own_the_axes(make_vit: Callable[..., Any]) -> None:
    """The last block writes 1000 times more than the others, along one direction of its own."""
    model = make_vit()
    with torch.no_grad():
        model.blocks[2].mlp.fc2.bias[5] += 1000
    teacher = adapt_teacher(model)
    teacher.fold()
    axes = principal_axes(teacher.view, [pictures()])
    read = [teacher(pictures(), Capture(mixers=frozenset({1}))).mixers[1]["attention_input"]]
    first = F.normalize(read[0].double(), dim=-1) @ axes[:, :WIDTH]
    assert float(first.square().sum(-1).mean()) > 0.6  # 24 of 64 axes at random hold 0.375


def test_a_stream_of_low_rank_is_read_exactly(make_vit: Callable[..., Any]) -> None:
    """20 directions fit into 24 coordinates: norm, sqrt(64 / 24) and matrix together are the teacher's."""
    model = of_low_rank(make_vit(), 20)
    student, teacher, select = start(model, "pca")
    assert select.residual.tolist() == list(range(WIDTH))
    hidden = teacher(pictures(), Capture(hidden=frozenset({2}))).hidden[2]
    assert float(hidden[..., 20:].abs().max()) < 1e-4 * float(hidden.abs().max())
    for norm in (student.norm_f, *(layer.norm for layer in student.layers)):
        norm.eps = 1e-6 * 64 / WIDTH
    assert max(read_errors(student, teacher, select)) < 1e-8
    _, _, chosen = start(model, "none")
    assert chosen.residual.tolist() != list(range(WIDTH))
    assert min(read_errors(*start(model, "none"))) > 0.1


@pytest.mark.parametrize("beside", [0.1, 0.3])
def test_axes_start_nearer_than_loud_coordinates(beside: float, make_vit: Callable[..., Any]) -> None:
    """Where the other directions hold a little too."""
    model = of_low_rank(make_vit(), 16, beside)
    rotated, plain = read_errors(*start(model, "pca")), read_errors(*start(model, "none"))
    assert all(a < 0.5 * b for a, b in zip(rotated, plain, strict=True))


def test_value_channels_are_chosen_as_without_a_rotation(make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    choices = [start(model, rotate)[2] for rotate in ("none", "pca")]
    for t in range(3):
        assert torch.equal(*(select.values(t, 64, 48) for select in choices))
        assert torch.equal(*(select.neurons(t, 256, 48) for select in choices))


def test_a_teacher_is_rotated_once(make_vit: Callable[..., Any]) -> None:
    """A run does it before it builds the student, and may have no images at hand when it subclones."""
    teacher = adapt_teacher(make_vit())
    config = SubcloneConfig(fold=True, rotate="pca", importance="uniform")
    subclone(make_vim(), teacher, config, [pictures()])
    view = teacher.view
    subclone(make_vim(), teacher, config)
    assert teacher.view is view


def test_an_ssd_vit_of_a_rotated_teacher_is_its_teacher(make_vit: Callable[..., Any]) -> None:
    model = make_vit(init_values=0.2)
    init = SubcloneConfig(layers="all", importance="uniform", fold=True, rotate="pca")
    student, _ = transmamba.convert(
        model, "ssd_vit", init=init, calibration=[pictures()], attention_layers=[0, 1, 2]
    )
    with torch.no_grad():
        torch.testing.assert_close(student(pictures()), model(pictures()), rtol=1e-4, atol=1e-4)


def test_layer_norms_over_a_rotated_stream_are_refused(make_vit: Callable[..., Any]) -> None:
    init = SubcloneConfig(layers="all", importance="uniform", fold=True, rotate="pca")
    with pytest.raises(UserError, match=r"leave student.model out, and it gets the teacher's norms"):
        transmamba.convert(
            make_vit(), "ssd_vit_micro_patch2_8", init=init, calibration=[pictures()], depth=3, in_chans=1
        )


def test_without_images_there_are_no_axes(make_vit: Callable[..., Any]) -> None:
    init = SubcloneConfig(layers="all", importance="uniform", fold=True, rotate="pca")
    with pytest.raises(UserError, match=r"init.rotate needs calibration images"):
        transmamba.convert(make_vit(), "vim_micro_patch2_8", init=init, in_chans=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(rotate="pca"), "set fold to true"),
        (dict(rotate="pca", fold=True, importance="change", base="x"), "write activation"),
        (dict(rotate="pca", fold=True, calibration_images=0), "write how many it looks at"),
        (dict(rotate="svd", fold=True), "init.rotate"),
    ],
)
def test_bad_values_are_one_line(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        harness.tiny_recipe(tmp_path, init=dict(layers="all", **options))
    assert "1 problem" in str(caught.value)


# --- a run's axes ---


def test_a_run_begins_with_axes_of_its_own_and_goes_on_with_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    init = dict(layers="all", calibration_images=8, fold=True, rotate="pca")
    recipe = harness.tiny_recipe(tmp_path, init=init)
    accelerator = make_accelerator(recipe)
    stale, path = torch.eye(16).double().flip(0), run / "rotation.safetensors"
    save_file({"axes": stale}, path)
    line = assemble(recipe, accelerator, run)  # no checkpoint: what is there is another recipe's
    axes = load_file(path)["axes"]
    assert line.teacher is not None and line.teacher.rotated
    assert not torch.equal(axes, stale)
    images = line.task.calibration(8, 4)
    plain = recipe.teacher.build()
    plain.fold()
    assert torch.equal(axes, principal_axes(plain.view, [batch.images for batch in images]))
    saved = run / "checkpoints" / "step-00000003"
    saved.mkdir(parents=True)
    (saved / "progress.json").write_text("{}")
    save_file({"axes": stale}, path)
    again = assemble(recipe, accelerator, run).teacher
    assert again is not None
    torch.testing.assert_close(again.view.embedding.special, plain.view.embedding.special.flip(1))
    path.unlink()
    with pytest.raises(UserError, match=r"the run began in its axes; run anew with --overwrite"):
        assemble(recipe, accelerator, run)


def test_a_recipe_that_is_only_looked_at_writes_nothing(tmp_path: Path) -> None:
    init = dict(layers="all", calibration_images=8, fold=True, rotate="pca")
    recipe = harness.tiny_recipe(tmp_path, init=init)
    line = assemble(recipe, make_accelerator(recipe))
    assert line.teacher is not None and line.teacher.rotated and not (tmp_path / "run").exists()
