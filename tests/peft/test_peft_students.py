"""Adapters on our own students' mixers, alone and as the distiller runs them."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import peft_models as tiny
import pytest
import torch
from peft import LoraModel, PeftModel, get_peft_model
from randomised import randomise_
from torch import Tensor, nn

import transmamba
from transmamba.core.output import Capture
from transmamba.errors import UserError
from transmamba.peft import MambaPeftConfig
from transmamba.peft.export import export_lora
from transmamba.peft.student import tune

# no skip D; states are the heads' channels; no class token where the mean of all is read
NOT_ON = {"vim": set(), "ssd_vit": {"d", "additional_scan", "cls_token"}}
PAIRS = [
    (name, method)
    for name in NOT_ON
    for method in [*tiny.METHODS, *tiny.AT_INPUT]
    if method not in NOT_ON[name]
]


@functools.cache
def made(name: str) -> nn.Module:
    from transmamba.students.ssd_vit.model import SSDVisionTransformer
    from transmamba.students.vim.model import VisionMamba

    sizes: dict[str, Any] = dict(img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=2, num_classes=5)
    if name == "ssd_vit":
        # what a class token in front reads has no past, and so no decay
        model: Any = SSDVisionTransformer(**sizes, num_heads=2, global_pool="avg", class_token=False)
    else:
        model = VisionMamba(**sizes, d_state=4)
    randomise_(model)
    return model.eval().requires_grad_(False)


def student(name: str) -> Any:
    return copy.deepcopy(made(name))


def images(rows: int = 2) -> Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(4))


def adapted(name: str, methods: list[Any], trained: bool = True) -> Any:
    torch.manual_seed(1)
    model = get_peft_model(student(name), MambaPeftConfig(methods=methods)).eval()
    if trained:
        tiny.train_(model)
    return model


def all_methods(name: str) -> list[str]:
    if name == "text":
        return [
            method for method in all_methods("ssd_vit") if method not in ("lora_embed", "prompt", "pos_embed")
        ]
    return [method for method in [*tiny.METHODS, *tiny.AT_INPUT] if method not in NOT_ON[name]]


@pytest.mark.parametrize("name, method", PAIRS)
def test_a_method_on_a_student(name: str, method: str, tmp_path: Path) -> None:
    """Identity at the start, saved and loaded, merged, without it the base bit for bit."""
    x = images()
    with torch.no_grad():
        wanted = student(name)(x)
        moved = (adapted(name, [method], trained=False)(x) - wanted).abs().max()
        assert moved <= 1e-6 * wanted.abs().max() or method in tiny.RANDOM
        model = adapted(name, [method])
        made_of = model(x)
        assert (made_of - wanted).abs().max() > 1e-4
        with model.disable_adapter():
            assert torch.equal(model(x), wanted)
        model.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(student(name), tmp_path)(x), made_of)
        if method in [*tiny.MERGED, *tiny.AT_INPUT]:
            before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            model.merge_adapter()
            torch.testing.assert_close(model(x), made_of, atol=1e-5, rtol=0)
            model.unmerge_adapter()
            assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
            torch.testing.assert_close(model.merge_and_unload()(x), made_of, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NOT_ON)
def test_every_trained_tensor_has_a_gradient(name: str) -> None:
    model = adapted(name, all_methods(name)).train()
    model(images()).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, key


def branches(model: Any, tokens: Any = None) -> list[Tensor]:
    """Logits, then the two directions of the first layer, as a distiller takes them."""
    chosen = None if tokens is None else torch.tensor(tokens)
    capture = Capture(branches=frozenset({0}), tokens=chosen)
    with torch.no_grad():
        output = model.run({"image": images()}, {"image": capture})
        return [output.logits(), *output.stream.branches[0]]


@pytest.mark.parametrize("tokens", [None, [0, 2]])
@pytest.mark.parametrize("name", NOT_ON)
def test_a_student_runs_as_it_is_distilled(name: str, tokens: Any) -> None:
    methods = [method for method in all_methods(name) if method in tiny.MERGED]
    model = adapted(name, methods)
    made_of = branches(model.get_base_model(), tokens)
    torch.testing.assert_close(made_of[0], model(images()).detach())
    for mine, merged in zip(made_of, branches(model.merge_and_unload(), tokens), strict=True):
        torch.testing.assert_close(mine, merged, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokens", [None, [0, 2]])
def test_an_offset_of_one_direction_is_in_that_direction_alone(tokens: Any) -> None:
    model = adapted("vim", ["state_offset_h"])
    before = branches(model.get_base_model(), tokens)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("state_offset_h_b") and "layers.0" in key:
                parameter.mul_(-2)
    after = branches(model.get_base_model(), tokens)
    torch.testing.assert_close(after[1], before[1], atol=1e-5, rtol=0)
    assert (after[2] - before[2]).abs().max() > 1e-2


@pytest.mark.parametrize("tokens", [None, [0, 2]])
@pytest.mark.parametrize("name", NOT_ON)
def test_a_family_s_own_run_is_the_mixer_s_where_nothing_is_inside(name: str, tokens: Any) -> None:
    """With an offset of 0 the pieces are run: they are the module's own forward, its record too."""
    plain, pieces = adapted(name, ["lora_x"]), adapted(name, ["lora_x"])
    pieces.add_adapter("zero", MambaPeftConfig(methods=["state_offset_h"]))
    pieces.base_model.set_adapter(["default", "zero"])
    made_of = zip(
        branches(plain.get_base_model(), tokens), branches(pieces.get_base_model(), tokens), strict=True
    )
    for mine, wanted in made_of:
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=0)


def test_more_states_merged_into_a_vim_are_saved_with_it(tmp_path: Path) -> None:
    import timm

    import transmamba

    sizes: dict[str, Any] = dict(img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=2, num_classes=5)
    model = timm.create_model("vim_micro_patch2_8", **sizes, d_state=4).eval()
    randomise_(model)
    model = get_peft_model(model, MambaPeftConfig(methods=["additional_scan"])).eval()
    tiny.train_(model)
    with torch.no_grad():
        wanted = model(images())
        transmamba.save_student(model.merge_and_unload(), tmp_path / "student")
        again = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
        torch.testing.assert_close(again(images()), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name, method, said", [("ssd_vit", "d", "no skip D"), ("vim", "lora_w", "unknown")])
def test_a_method_that_a_student_cannot_take(name: str, method: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        adapted(name, [method])


def test_a_text_tower_s_mixer() -> None:
    """All methods on it, with masks and segments: identity at first, then rows and segments as alone."""
    from transmamba.core.output import Context
    from transmamba.layers.causal import CausalSSD

    mixer = CausalSSD(16, 2, length=6)
    randomise_(mixer)
    u = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    segments = torch.tensor([[0, 0, 0, 1, 1, 1], [0] * 6], dtype=torch.int32)
    context = Context(mask=mask, segments=segments)
    with torch.no_grad():
        wanted = mixer(u, context).output
    still = [method for method in all_methods("text") if method not in tiny.RANDOM]
    model = get_peft_model(nn.ModuleDict({"mixer": mixer}), MambaPeftConfig(methods=still))
    layer = model.base_model.model["mixer"]
    torch.testing.assert_close(layer(u, context).output, wanted, atol=1e-5, rtol=0)
    model.add_adapter("other", MambaPeftConfig(methods=[*still, "affix"]))
    model.base_model.set_adapter("other")
    tiny.train_(model)
    output = layer(u, context).output
    output.square().sum().backward()
    assert all(bool(p.grad.any()) for p in model.parameters() if p.requires_grad)
    alone = layer(u[:1, 3:]).output
    torch.testing.assert_close(output[:1, 3:], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(output[1:, :4], layer(u[1:, :4]).output, atol=1e-5, rtol=0)


def test_layers_of_a_student_are_chosen_by_number() -> None:
    model = get_peft_model(student("vim"), MambaPeftConfig(methods=["a"], layers_to_transform=[1]))
    adapted_ones = {name for name, p in model.named_parameters() if p.requires_grad}
    assert adapted_ones and all(".layers.1.mixer." in name for name in adapted_ones)


@pytest.mark.parametrize("name", NOT_ON)
@pytest.mark.parametrize("methods", [["lora_embed"], ["lora_embed", "lora_in", "lora_x", "lora_out"]])
def test_stock_peft_loads_a_student_s_exported_lora(name: str, methods: list[str], tmp_path: Path) -> None:
    """That of patches is a convolution's."""
    model, x = adapted(name, [dict(name=method, r=3 + i) for i, method in enumerate(methods)]), images()
    export_lora(model, tmp_path / "lora")
    stock = PeftModel.from_pretrained(student(name), tmp_path / "lora").eval()
    assert isinstance(stock.base_model, LoraModel)
    with torch.no_grad():
        torch.testing.assert_close(stock(x), model(x), atol=1e-5, rtol=0)
        assert (stock(x) - student(name)(x)).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["prompt", "affix"])
def test_a_student_that_is_saved_merged_takes_what_merges(method: str, tmp_path: Path) -> None:
    """The files of others would lie beside it, and fit none of its names."""
    from small_llava import llava_folder

    llava, _ = transmamba.convert(str(llava_folder(tmp_path / "llava")), "llava", decoder={"kind": "hybrid"})
    before = [*llava.state_dict()]
    with pytest.raises(UserError, match=f"{method} cannot be merged, .* some that merge, such as lora_x"):
        tune(llava, MambaPeftConfig(methods=["lora_x", method]))
    assert [*llava.state_dict()] == before and not hasattr(llava, "tuned")
