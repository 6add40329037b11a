"""Calibration against numpy's least squares on all tokens at once, and against what models really write."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import transmamba
from transmamba import SubcloneConfig, UserError, adapt_teacher
from transmamba.calibration import NormalEquations, calibrate
from transmamba.selection import Selection
from transmamba.subclone import subclone
from transmamba.subclone_report import Report

RIDGE = 1e-3
# the teacher's position of each of vim's tokens: the class token is first there, in the middle here
VIM_ORDER = [*range(1, 9), 0, *range(9, 17)]


def make_vim(width: int = 64, depth: int = 6, **kwargs: Any) -> Any:
    torch.manual_seed(11)
    shape = dict(embed_dim=width, depth=depth, in_chans=1, num_classes=10, d_state=4)
    return timm.create_model("vim_micro_patch2_8", **{**shape, **kwargs}).eval()


def pictures(count: int = 24) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def config_of(**options: Any) -> SubcloneConfig:
    return SubcloneConfig(
        **{"layers": "all", "importance": "uniform", "calibrate": 24, "ridge": RIDGE, **options}
    )


def calibrated(
    model: nn.Module, student: Any, images: Any = None, **options: Any
) -> tuple[Any, Any, Report, Selection]:
    """(as cloned, as calibrated, report, selection)."""
    teacher, config = adapt_teacher(model), config_of(**options)
    report, select = subclone(student, teacher, config)
    cloned = copy.deepcopy(student)
    report.calibrated = calibrate(
        student, teacher, config, select, [pictures()] if images is None else images
    )
    return cloned, student, report, select


@contextmanager
def recorded(modules: dict[str, nn.Module], inputs: bool = False) -> Iterator[dict[str, Tensor]]:
    """What each of the modules gets or makes when its model runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, given, made: seen.__setitem__(name, given[0] if inputs else made)

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def sublayer_outputs(vit: Any, images: Tensor) -> dict[str, Tensor]:
    """What each of a timm ViT's sublayers adds to the stream, by its own code."""
    modules = {f"blocks.{t}.attention": block.ls1 for t, block in enumerate(vit.blocks)}
    modules |= {f"blocks.{t}.mlp": block.ls2 for t, block in enumerate(vit.blocks)}
    with recorded(modules) as made:
        vit(images)
    return dict(made)


@torch.no_grad()
def inputs_of(student: Any, names: list[str], images: Tensor) -> dict[str, Tensor]:
    with recorded({name: student.get_submodule(name) for name in names}, inputs=True) as given:
        student(images)
    return dict(given)


def ridge_by_numpy(y: Tensor, left: Tensor, bias: bool) -> np.ndarray[Any, Any]:
    """The change (D, E [+ 1]): ordinary least squares with a row sqrt(strength) e_i added for each input."""
    inputs, wanted = y.double().flatten(0, 1).numpy(), left.double().flatten(0, 1).numpy()
    strength = RIDGE * np.mean(np.sum(inputs**2, axis=0))
    penalty = np.sqrt(strength) * np.eye(inputs.shape[1])
    if bias:
        inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
        penalty = np.concatenate([penalty, np.zeros((len(penalty), 1))], axis=1)
    stacked = np.concatenate([inputs, penalty])
    return np.linalg.lstsq(stacked, np.concatenate([wanted, np.zeros((len(penalty), wanted.shape[1]))]))[0].T


def assert_solved(
    linear: nn.Linear, cloned: nn.Linear, y: Tensor, wanted: Tensor, scale: Tensor | None
) -> None:
    """`linear` is the reference solution from `cloned` on, for inputs y and wanted outputs after `scale`."""
    g = torch.ones(len(wanted[0, 0])) if scale is None else scale.detach()
    with torch.no_grad():
        left = wanted.double() - cloned.double()(y.double()) * g
    delta = ridge_by_numpy(y, left, linear.bias is not None) / g.double().numpy()[:, None]
    expected = cloned.weight.detach().double() + torch.from_numpy(delta[:, : linear.in_features])
    torch.testing.assert_close(linear.weight.detach().double(), expected, rtol=1e-4, atol=1e-5)
    if linear.bias is not None:
        moved = cloned.bias.detach().double() + torch.from_numpy(delta[:, -1])
        torch.testing.assert_close(linear.bias.detach().double(), moved, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, dict(proj_bias=True, gate_bias=True)], ids=["plain", "biases"])
@pytest.mark.parametrize("width", [64, 24, 96])
def test_each_layer_of_a_vim_is_the_least_squares_solution(
    width: int, options: dict[str, Any], make_vit: Callable[..., Any]
) -> None:
    model = make_vit(init_values=0.5)
    cloned, student, report, select = calibrated(model, make_vim(width, **options))
    names = [f"layers.{k}.mixer.out_proj" for k in range(6)]
    assert [fitted.target for fitted in report.calibrated] == names
    # below each layer the student has what it had when that layer was solved
    given, made = inputs_of(student, names, pictures()), sublayer_outputs(model, pictures())
    for k, name in enumerate(names):
        source = f"blocks.{k // 2}.{'attention' if k % 2 == 0 else 'mlp'}"
        assert report.calibrated[k].source == source
        wanted = made[source][:, VIM_ORDER][..., select.residual]
        assert_solved(student.get_submodule(name), cloned.get_submodule(name), given[name], wanted, None)


@pytest.mark.parametrize("options", [{}, dict(init_values=0.3), dict(proj_bias=False), dict(reg_tokens=2)])
def test_each_write_of_an_ssd_vit_is_the_least_squares_solution(
    options: dict[str, Any], make_vit: Callable[..., Any]
) -> None:
    model = make_vit(**options)
    untouched, _ = transmamba.convert(model, "ssd_vit", attention_layers=[1])
    cloned, student, report, _ = calibrated(model, untouched)
    names = [f"blocks.{k}.{name}" for k in range(3) for name in ("attn.proj", "mlp.fc2")]
    assert [fitted.target for fitted in report.calibrated] == names
    given, made = inputs_of(student, names, pictures()), sublayer_outputs(model, pictures())
    for name, fitted in zip(names, report.calibrated, strict=True):
        block = student.blocks[int(name.split(".")[1])]
        scale = getattr(block.ls1 if "attn" in name else block.ls2, "gamma", None)
        linears = student.get_submodule(name), cloned.get_submodule(name)
        assert_solved(*linears, given[name], made[fitted.source], scale)


@torch.no_grad()
def measured(student: Any, name: str, linear: nn.Linear, wanted: Tensor) -> float:
    """Relative error of `linear` in the place of `name`."""
    made = linear(inputs_of(student, [name], pictures())[name])
    return float((made - wanted).square().sum() / wanted.square().sum())


def test_the_errors_reported_are_those_of_the_models_and_go_down(make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    cloned, student, report, select = calibrated(model, make_vim(24))
    made = sublayer_outputs(model, pictures())
    for fitted in report.calibrated:
        wanted = made[fitted.source][:, VIM_ORDER][..., select.residual]
        after = measured(student, fitted.target, student.get_submodule(fitted.target), wanted)
        before = measured(student, fitted.target, cloned.get_submodule(fitted.target), wanted)
        assert fitted.after == pytest.approx(after, rel=1e-3)
        assert fitted.before == pytest.approx(before, rel=1e-3)
        assert fitted.after < 0.9 * fitted.before and fitted.after < 1


def test_layers_that_share_a_sublayer_share_its_output(make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    cloned, student, report, _ = calibrated(model, make_vim(depth=12))
    names = [fitted.target for fitted in report.calibrated]
    assert [fitted.source for fitted in report.calibrated[:3]] == ["blocks.0.attention"] * 2 + [
        "blocks.0.mlp"
    ]
    given, made = inputs_of(student, names, pictures()), sublayer_outputs(model, pictures())
    for name, fitted in zip(names, report.calibrated, strict=True):
        wanted = made[fitted.source][:, VIM_ORDER] / 2
        assert_solved(student.get_submodule(name), cloned.get_submodule(name), given[name], wanted, None)


def test_batches_make_no_difference(make_vit: Callable[..., Any]) -> None:
    images, model = pictures(30), make_vit()
    whole = calibrated(model, make_vim(24), [images[:24]])[1].state_dict()
    parts = calibrated(model, make_vim(24), iter(images.split(7)))[1].state_dict()  # 30 given, 24 asked for
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [0, 2, "half", "all"])
def test_only_cloned_layers_are_calibrated(layers: Any, make_vit: Callable[..., Any]) -> None:
    cloned, student, report, _ = calibrated(make_vit(), make_vim(24), layers=layers)
    changed = {
        name
        for name, tensor in student.state_dict().items()
        if not torch.equal(tensor, cloned.state_dict()[name])
    }
    number = {0: 0, 2: 2, "half": 3, "all": 6}[layers]
    assert changed == {f"layers.{k}.mixer.out_proj.weight" for k in range(number)}
    assert len(report.calibrated) == number


def test_nothing_is_calibrated_unless_asked(make_vit: Callable[..., Any]) -> None:
    cloned, student, report, _ = calibrated(make_vit(), make_vim(24), calibrate=0)
    assert report.calibrated == [] and "calibrated" not in report.summary()
    assert all(torch.equal(a, b) for a, b in zip(cloned.parameters(), student.parameters(), strict=True))


def test_what_is_already_the_teacher_stays(make_vit: Callable[..., Any]) -> None:
    model = make_vit(init_values=0.3)
    student, _ = transmamba.convert(model, "ssd_vit", attention_layers=[0, 1, 2])
    cloned, student, report, _ = calibrated(model, student)
    for a, b in zip(cloned.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert max(fitted.before for fitted in report.calibrated) < 1e-9


def test_what_layer_scale_silences_stays(make_vit: Callable[..., Any]) -> None:
    teacher, config = adapt_teacher(make_vit(init_values=0.3)), config_of()
    student: Any = transmamba.convert(teacher, "ssd_vit")[0]
    _, select = subclone(student, teacher, config)
    with torch.no_grad():
        student.blocks[0].ls1.gamma[:5] = 0
    cloned = student.blocks[0].attn.proj.weight.clone()
    calibrate(student, teacher, config, select, [pictures()])
    same = (student.blocks[0].attn.proj.weight == cloned).all(dim=1)
    assert same.tolist() == [True] * 5 + [False] * 59


def test_another_patch_grid_is_resized(make_vit: Callable[..., Any]) -> None:
    _, _, report, _ = calibrated(make_vit(), make_vim(patch_size=4))
    assert all(fitted.after < fitted.before for fitted in report.calibrated)


def test_the_student_is_as_it_was_but_for_its_weights(make_vit: Callable[..., Any]) -> None:
    """A run's student is in training mode, and calibration draws no random number and drops nothing."""
    student, model = make_vim(24, drop_path_rate=0.5).train(), make_vit()
    torch.manual_seed(7)
    _, student, _, _ = calibrated(model, student)
    assert student.training
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))
    again = calibrated(make_vit(), make_vim(24))[1].state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in student.state_dict().items())
    assert not any(module._forward_pre_hooks for module in student.modules())


def test_inputs_that_are_always_zero_change_nothing() -> None:
    sums = NormalEquations(3, 2, bias=False, device=torch.device("cpu"))
    sums.add(torch.zeros(5, 3), torch.ones(5, 2), torch.ones(5, 2))
    assert not sums.solve(RIDGE).any() and sums.error() == 1.0


def test_the_report_says_what_was_calibrated(tmp_path: Path, make_vit: Callable[..., Any]) -> None:
    _, _, report, _ = calibrated(make_vit(), make_vim(24))
    first = report.to_dict()["calibrated"][0]
    assert first.keys() == {"target", "source", "before", "after"}
    before = sum(fitted.before for fitted in report.calibrated) / 6
    after = sum(fitted.after for fitted in report.calibrated) / 6
    line = f"6 matrices calibrated: mean relative error {before:.3f} -> {after:.3f}"
    assert report.summary().splitlines()[-1] == line


def test_convert_calibrates(make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    shape = dict(embed_dim=24, depth=6, d_state=4)
    student, report = transmamba.convert(
        model, "vim_micro_patch2_8", init=config_of(), calibration=[pictures()], in_chans=1, **shape
    )
    assert len(report.calibrated) == 6 and not student.training
    with pytest.raises(UserError, match=r"init.calibrate needs training images"):
        transmamba.convert(model, "vim_micro_patch2_8", init=config_of(), in_chans=1, **shape)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(calibrate=-1), "calibrate is -1; write a number of images"),
        (dict(ridge=0.0), "ridge is 0.0; write a number above 0"),
        (dict(ridge=-1e-3), "ridge is -0.001; write a number above 0"),
        (dict(ridge=float("nan")), "ridge is nan; write a number above 0"),
    ],
)
def test_bad_values_are_one_line(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        SubcloneConfig(**options)
    with pytest.raises(UserError, match="init"):
        harness.tiny_recipe(tmp_path, init=dict(layers="all", **options))


def test_a_teacher_of_infinities_is_refused(make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias[0] = float("inf")
    with pytest.raises(UserError, match=r"layers.3.mixer.out_proj gets or makes values that are not finite"):
        calibrated(model, make_vim(24))
