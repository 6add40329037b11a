"""Adapters on the student of sequences of points: its Mamba and Mamba-2 mixers, alone and in a recipe."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import harness
import peft_models as tiny
import pytest
import torch
from peft import PeftModel, get_peft_model
from randomised import randomise_
from torch import Tensor

import transmamba
from transmamba.config import load as configs
from transmamba.ecosystems.find import load_model, save_model
from transmamba.errors import UserError
from transmamba.peft import MambaPeftConfig
from transmamba.runs.recipe import Recipe
from transmamba.runs.search_peft import Search, search_peft

MIXERS = ["mamba1", "mamba2"]
# its points are embedded by a linear, and its shape says how many states all layers have
NOT_ON = {"lora_embed", "prompt", "additional_scan"}
METHODS = [method for method in tiny.METHODS if method not in NOT_ON]
TASK = dict(name="in_context", function=dict(name="linear", d=3), prompts=16)


@functools.cache
def made(mixer: str) -> Any:
    from transmamba.students.sequence.layers import SequenceShape
    from transmamba.students.sequence.model import SequenceModel

    sizes: dict[str, Any] = dict(width=16, heads=2, mlp_width=24, positions=0, expand=2, state=4, groups=2)
    sizes |= dict(head_size=8, conv=3, dropout=0.0, inputs=3, outputs=1, length=12)
    model = SequenceModel(SequenceShape(pattern="MAM", mixer=mixer, **sizes))  # type: ignore[arg-type]
    randomise_(model)
    return model.eval().requires_grad_(False)


def points() -> Tensor:
    return torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(4))


def adapted(mixer: str, methods: list[str], trained: bool = True) -> Any:
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(made(mixer)), MambaPeftConfig(methods=methods)).eval()
    if trained:
        tiny.train_(model)
    return model


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method(method: str, mixer: str, tmp_path: Path) -> None:
    """Identity at the start, on every Mamba layer, causal, saved and loaded, merged; without it the base bit
    for bit."""
    x = points()
    with torch.no_grad():
        wanted = made(mixer)(x)
        moved = (adapted(mixer, [method], trained=False)(x) - wanted).abs().max()
        assert moved <= 1e-6 * wanted.abs().max() or method in tiny.RANDOM
        model = adapted(mixer, [method])
        assert model.coverage().mixers == (2, 2)
        found = model(x)
        assert (found - wanted).abs().max() > 1e-4
        torch.testing.assert_close(model(x[:, :5]), found[:, :5], atol=1e-5, rtol=1e-5)
        with model.disable_adapter():
            assert torch.equal(model(x), wanted)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(copy.deepcopy(made(mixer)), tmp_path)
        assert torch.equal(again(x), found)
        if method in tiny.MERGED:
            torch.testing.assert_close(model.merge_and_unload()(x), found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_trained_tensor_has_a_gradient(mixer: str) -> None:
    model = adapted(mixer, METHODS).train()
    model(points()).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, key


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_is_inside_is_what_the_same_rows_would_be(mixer: str) -> None:
    """An offset of 0 runs the family's pieces; an initial state of 0 and no affix change nothing."""
    plain, pieces = adapted(mixer, ["lora_x"]), adapted(mixer, ["lora_x"])
    pieces.add_adapter("zero", MambaPeftConfig(methods=["state_offset_h", "initial_state"]))
    pieces.base_model.set_adapter(["default", "zero"])
    with torch.no_grad():
        torch.testing.assert_close(pieces(points()), plain(points()), atol=1e-5, rtol=1e-5)


def by_hand(mixer: Any, u: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Mamba (B, L, d) in float64, token by token, behind an affix, from h0, with h' and y'."""
    x, z = mixer.in_proj(u).chunk(2, dim=-1)
    put = tensors["affix"]
    x = torch.cat([put[:, : x.shape[-1]].expand(len(x), -1, -1), x], dim=1)
    taps = mixer.conv1d.weight[:, 0]
    rows = torch.cat([x.new_zeros(len(x), taps.shape[1] - 1, x.shape[-1]), x], dim=1)
    x = sum(rows[:, k : k + x.shape[1]] * taps[:, k] for k in range(taps.shape[1])) + mixer.conv1d.bias
    x = x.sigmoid() * x
    delta, B, C = mixer.x_proj(x).split([mixer.rank, mixer.d_state, mixer.d_state], dim=-1)
    dt = (1 + mixer.dt_proj(delta).exp()).log()
    h = tensors["initial_state"].expand(len(x), -1, -1)
    made = []
    for t in range(x.shape[1]):
        decay = (-mixer.A_log.exp() * dt[:, t, :, None]).exp()
        h = decay * h + (dt[:, t] * x[:, t])[:, :, None] * B[:, t, None]
        read = ((h + tensors["state_offset_h"]) * C[:, t, None]).sum(-1)
        made.append(read + mixer.D * x[:, t] + tensors["state_offset_y"])
    y = torch.stack(made[len(put) :], dim=1)
    return mixer.out_proj(y * z * z.sigmoid())


def test_what_is_inside_a_mamba_mixer_is_the_recurrence() -> None:
    names = ["affix", "initial_state", "state_offset_h", "state_offset_y"]
    model = adapted("mamba1", names)
    layer = model.get_base_model().layers[0].mixer
    tensors = {
        key.rpartition(".")[2]: value.double()
        for key, value in layer.named_parameters()
        if "transmamba_adapters" in key
    }
    u = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = by_hand(copy.deepcopy(made("mamba1").layers[0].mixer).double(), u.double(), tensors)
        torch.testing.assert_close(layer(u).output.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", sorted(NOT_ON))
def test_what_it_does_not_take_is_said(method: str) -> None:
    with pytest.raises(UserError, match=f"method '{method}': .* (no embedding|cannot have more states)"):
        adapted("mamba1", [method])


def recipe(folder: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = dict(
        output_dir=str(folder / "run"),
        task=TASK,
        student=dict(name="saved", model=str(folder / "student")),
        init=None,
        adapter=dict(methods=["lora_x", "state_offset_h"]),
        stages=[dict(losses=["prediction"], steps=3, lr=1e-2)],
        trainer=dict(global_batch=4, eval_every=0),
    )
    return configs.parse(Recipe, {**values, **changes}, "points")


def saved(folder: Path) -> Any:
    from transmamba.tasks.in_context import InContext

    task = configs.parse(Recipe, dict(
        output_dir="x", task=TASK, student=dict(name="sequence", architecture="mamba"),
        stages=[dict(losses=["prediction"], steps=1)],
    ), "points").task  # fmt: skip
    reads = InContext(task, None).points
    from transmamba.students.sequence.layers import SequenceShape
    from transmamba.students.sequence.model import SequenceModel

    sizes: dict[str, Any] = dict(width=16, heads=2, mlp_width=24, positions=0, expand=2, state=4, groups=2)
    sizes |= dict(head_size=8, conv=3, dropout=0.0)
    sizes |= dict(inputs=reads.width, outputs=reads.outputs, length=reads.length)
    student = SequenceModel(SequenceShape(pattern="MM", mixer="mamba1", **sizes))  # type: ignore[arg-type]
    save_model(student, folder / "student")
    return student


def test_a_recipe_and_what_it_leaves(tmp_path: Path) -> None:
    """An adapter that does not merge stands beside the student, and is read with it."""
    before = saved(tmp_path)
    results = harness.run_quietly(recipe(tmp_path))
    again: Any = load_model(tmp_path / "run")
    x = torch.randn(2, 6, before.shape.inputs)
    with torch.no_grad():
        assert (again(x) - load_model(tmp_path / "student")(x)).abs().max() > 1e-6
        alone = PeftModel.from_pretrained(load_model(tmp_path / "student"), tmp_path / "run" / "adapter")
        torch.testing.assert_close(alone.eval()(x), again(x))
    measured = transmamba.evaluate(tmp_path / "run", recipe(tmp_path).task)["student"]
    assert measured["missed"] == pytest.approx(results["student"]["missed"], rel=1e-5)


def test_a_search_looks_at_other_prompts_than_the_test_s(tmp_path: Path, monkeypatch: Any) -> None:
    from transmamba.tasks.in_context import InContext

    saved(tmp_path)
    seeds, inner = set(), InContext._test_numbers

    def noted(self: Any, *rest: Any) -> Any:
        seeds.add(self.config.eval_seed)
        return inner(self, *rest)

    monkeypatch.setattr(InContext, "_test_numbers", noted)
    asked = recipe(tmp_path)
    found = search_peft(asked, Search(trials=2, methods=("lora_x", "a")), tmp_path / "search", quiet=True)
    assert found["trials"] == {"step 1": 2, "step 2": 2} and seeds == {1}
    best = configs.load(Recipe, tmp_path / "search" / "best.yaml")
    assert best.task == asked.task
