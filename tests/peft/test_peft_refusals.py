"""Bad input: one line each that says what, and nothing half done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hybrid_models
import peft_models as tiny
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from transmamba.errors import UserError
from transmamba.peft import MambaPeftConfig

WRONG: dict[str, tuple[Any, str]] = {
    "an unknown method": (["lora_y"], "unknown method 'lora_y'; did you mean 'lora_"),
    "an unknown option": ([{"name": "lora_x", "rank": 4}], "unknown key"),
    "a wrong value": ([{"name": "lora_x", "r": 0}], "r: 0; write a whole number of at least 1"),
    "another type": ([{"name": "lora_x", "r": "four"}], "write a whole number"),
    "no method": ([], "write a list of at least one"),
    "a method twice": (["bias", {"name": "bias"}], "'bias' stands there twice"),
    "a ratio alone": ([{"name": "state_offset_h", "ratio": 2}], "ratio"),
    "a negative rate": ([{"name": "a", "rate": -1.0}], "rate"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_configuration_says_what_is_wrong_with_it(case: str) -> None:
    methods, said = WRONG[case]
    with pytest.raises(UserError) as refused:
        MambaPeftConfig(methods=methods)
    assert said in str(refused.value) and "\n" not in str(refused.value), str(refused.value)


UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such target": (
        "mamba",
        dict(methods=["a"], target_modules=["mixr"]),
        "'mixr' matches no mixer; mixers: backbone.layers.0.mixer",
    ),
    "no such layer": (
        "mamba",
        dict(methods=["a"], layers_to_transform=[7]),
        "layers_to_transform: 7 is no layer with a mixer; layers: 0, 1",
    ),
    "one such layer and another": (
        "mamba",
        dict(methods=["a"], layers_to_transform=[0, 99]),
        "layers_to_transform: 99 is no layer with a mixer; layers: 0, 1",
    ),
    "a layer of attention": (
        "bamba",
        dict(methods=["a"], layers_to_transform=[0, 1]),
        "layers_to_transform: 1 is no layer with a mixer; layers: 0$",
    ),
    "layers beside an expression": (
        "mamba",
        dict(methods=["a"], target_modules=".*mixer", layers_to_transform=[0]),
        "is not read beside a regular expression",
    ),
    "a pattern alone": ("mamba", dict(methods=["a"], layers_pattern="layers"), "without layers_to_transform"),
    "a pattern of nothing": (
        "mamba",
        dict(methods=["a"], layers_pattern=["layers", "blocks"], layers_to_transform=[0]),
        "layers_pattern: 'blocks' stands before no number",
    ),
    "no targets": ("mamba", dict(methods=["a"], target_modules=[]), "target_modules is empty"),
    "an exception of nothing": (
        "mamba",
        dict(methods=["a"], exclude_modules=["typo"]),
        "exclude_modules: 'typo' matches no mixer; mixers: backbone.layers.0.mixer",
    ),
    "an expression of nothing": (
        "mamba",
        dict(methods=["a"], exclude_modules="typo.*"),
        "exclude_modules: 'typo.*' matches no mixer",
    ),
    "a broken expression": (
        "mamba",
        dict(methods=["a"], target_modules="*.mixer"),
        r"target_modules: '\*.mixer' is no regular expression \(nothing to repeat",
    ),
    "a broken exception": (
        "mamba",
        dict(methods=["a"], exclude_modules="layers.(0"),
        r"exclude_modules: 'layers.\(0' is no regular expression",
    ),
    "a broken pattern": (
        "mamba",
        dict(methods=["a"], layers_pattern=["layers", "h["], layers_to_transform=[0]),
        r"layers_pattern: 'h\[' is no regular expression",
    ),
    "nothing whole": (
        "mamba",
        dict(methods=["a"], modules_to_save=["lm_hed"]),
        "modules_to_save: 'lm_hed' is no module of the model; did you mean 'lm_head'.* backbone, lm_head",
    ),
    "mixers for the embedding": (
        "mamba",
        dict(methods=["lora_embed", "prompt"], target_modules=["mixer"]),
        r"target_modules: \['mixer'\] is of mixers, and lora_embed, prompt is of the embedding",
    ),
    "layers for the embedding": (
        "mamba",
        dict(methods=["prompt"], layers_to_transform=[0]),
        "layers_to_transform: .* is of mixers, and prompt is of the embedding",
    ),
    "all excluded": ("mamba", dict(methods=["a"], exclude_modules=["mixer"]), "leave none of"),
    "a ratio that divides nothing": (
        "mamba",
        dict(methods=[{"name": "state_offset_h", "r": 1, "ratio": 5}]),
        "write a divisor of the mixer's 32 channels",
    ),
    "norms on B": ("falcon_mamba", dict(methods=["additional_scan"]), "cannot have more states"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_a_model_cannot_take_leaves_it_as_it_was(case: str) -> None:
    name, options, said = UNFIT[case]
    model = tiny.base(name)
    before = [(key, type(module)) for key, module in model.named_modules()]
    with pytest.raises(UserError, match=said) as refused:
        get_peft_model(model, MambaPeftConfig(**options))
    assert "\n" not in str(refused.value)
    assert [(key, type(module)) for key, module in model.named_modules()] == before


def test_a_model_without_mixers_names_those_that_adapters_know() -> None:
    with pytest.raises(UserError, match=r"Linear has no Mamba mixer of these: .*MambaMixer"):
        get_peft_model(nn.Linear(2, 2), MambaPeftConfig(methods=["a"]))
    model = tiny.base("mamba")
    for layer in model.backbone.layers:
        layer.mixer.__class__ = type("Other", (type(layer.mixer),), {"forward": lambda self, x: x})
    with pytest.raises(UserError, match=r"no Mamba mixer of these: .*; it has Other"):
        get_peft_model(model, MambaPeftConfig(methods=["a"]))


@pytest.mark.parametrize("methods", [["lora_embed"], ["prompt"], ["lora_embed", "prompt"]])
def test_a_transformer_s_embedding_is_left_to_peft_s_own_methods(methods: list[str]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=16, num_hidden_layers=2, **hybrid_models.ATTENTION)
    model = LlamaForCausalLM(LlamaConfig(**hybrid_models.VOCABULARY, **sizes))
    said = r"LlamaForCausalLM has no Mamba mixer of these: .*; use PEFT's own LoRA .*, or its prompt tuning"
    with pytest.raises(UserError, match=said):
        get_peft_model(model, MambaPeftConfig(methods=methods))
    assert not any("lora" in name or "transmamba" in name for name, _ in model.named_parameters())


def test_a_saved_layer_or_exception_of_nothing_is_loaded_still(tmp_path: Path) -> None:
    """Such adapters were made before these were refused, and say by their tensors where they are."""
    folder = saved(tmp_path, ["lora_x"])
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"layers_to_transform": [0, 1, 99], "exclude_modules": ["typo"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    adapted = PeftModel.from_pretrained(tiny.base("mamba"), folder)
    wanted = tiny.adapted("mamba", ["lora_x"])
    with torch.no_grad():
        assert torch.equal(adapted(tiny.words()).logits, wanted(tiny.words()).logits)


def saved(folder: Path, methods: list[Any]) -> Path:
    tiny.adapted("mamba", methods).save_pretrained(folder)
    return folder


def other_width() -> nn.Module:
    return tiny.mamba(hidden_size=24, time_step_rank=3)


def fewer_layers() -> nn.Module:
    return tiny.mamba(num_hidden_layers=1)


@pytest.mark.parametrize("make", [other_width, fewer_layers])
@pytest.mark.parametrize("through", ["peft", "transformers", "a second adapter"])
def test_an_adapter_of_another_base_is_refused(make: Any, through: str, tmp_path: Path) -> None:
    model, folder = make(), saved(tmp_path, ["lora_x", "bias"])
    if through == "a second adapter":
        model = get_peft_model(model, MambaPeftConfig(methods=["d"]))
    before = {key: type(module) for key, module in model.named_modules()}
    with pytest.raises(UserError, match="another base") as refused:
        if through == "peft":
            PeftModel.from_pretrained(model, folder)
        elif through == "transformers":
            model.load_adapter(folder)
        else:
            model.load_adapter(folder, "second")
    assert "\n" not in str(refused.value)
    assert {key: type(module) for key, module in model.named_modules()} == before


def test_an_adapter_of_a_base_with_another_name_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, ["bias"])
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "state-spaces/mamba-370m-hf"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model = tiny.base("mamba")
    model.name_or_path = model.config.name_or_path = "models/mamba-130m-hf"
    with pytest.raises(
        UserError, match=r"trained on 'state-spaces/mamba-370m-hf', .* 'models/mamba-130m-hf'"
    ):
        PeftModel.from_pretrained(model, folder)
    for same in ("copies/mamba-370m-hf", "hub/models--state-spaces--mamba-370m-hf/snapshots/0123"):
        model.name_or_path = same
        model = PeftModel.from_pretrained(model, folder).unload()


@pytest.mark.parametrize("damage", ["cut", "a tensor less", "a tensor more", "another shape"])
def test_a_damaged_file_is_refused_and_nothing_of_it_loaded(damage: str, tmp_path: Path) -> None:
    file = saved(tmp_path, ["lora_x", "bias"]) / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(iter(tensors))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "a tensor less":
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, file)
    elif damage == "a tensor more":
        save_file(tensors | {f"{key}_more": torch.zeros(1)}, file)
    else:
        save_file(tensors | {key: torch.zeros(3)}, file)
    model = tiny.base("mamba")
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(UserError, match="damaged") as refused:
        PeftModel.from_pretrained(model, tmp_path)
    assert "\n" not in str(refused.value)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_tensors_that_do_not_fit_a_config_of_the_user_s_own_leave_the_model_as_it_was(tmp_path: Path) -> None:
    """Such a configuration knows nothing of the file, which is read when the adapter is in the model."""
    folder, model = saved(tmp_path, ["lora_x", "bias"]), tiny.base("mamba")
    before = {name: type(module) for name, module in model.named_modules()}
    config = MambaPeftConfig(methods=[{"name": "lora_x", "r": 3}, "bias"])
    with pytest.raises(UserError, match=r"lora_x_down is \(64, 16\), this model's \(3, 16\)"):
        PeftModel.from_pretrained(model, folder, config=config)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("method", tiny.INSIDE)
def test_what_weights_cannot_hold_is_not_merged(method: str) -> None:
    adapted = tiny.adapted("mamba", ["lora_embed", "lora_x", method])
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    for merge in (adapted.merge_adapter, adapted.merge_and_unload):
        with pytest.raises(UserError, match=f"{method} cannot be merged"):
            merge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())


def test_more_states_in_some_layers_are_not_merged() -> None:
    adapted = tiny.adapted("mamba", ["additional_scan"], layers_to_transform=[0])
    with pytest.raises(UserError, match="on 1 of 2 mixers"):
        adapted.merge_and_unload()


def test_an_adapter_that_is_not_run_is_refused_at_the_first_step() -> None:
    adapted, ids = tiny.adapted("mamba", ["lora_x", "bias"]).train(), tiny.words()
    layer = adapted.base_model.model.backbone.layers[1]
    layer.mixer.forward = layer.mixer.base_layer.forward  # as a kernel would that goes around the adapter
    with pytest.raises(
        UserError, match=r"no gradient reaches .*layers.1.*a gradient reaches bias, lora_x_down"
    ):
        adapted(ids, labels=ids)


def test_an_adapter_of_which_nothing_is_run_is_refused_at_the_first_step() -> None:
    """Then no tensor that the model gives has a graph at all."""
    adapted, ids = tiny.adapted("mamba", ["lora_x", "bias"]).train(), tiny.words()
    for layer in adapted.base_model.model.backbone.layers:
        layer.mixer.forward = layer.mixer.base_layer.forward
    with pytest.raises(UserError, match=r"no gradient reaches .*layers.0.*; none reaches the adapter$"):
        adapted(ids)
    merged = tiny.adapted("mamba", ["lora_x", "bias"]).train()
    merged.merge_adapter()
    with pytest.raises(UserError, match="none reaches the adapter, which is merged: call unmerge_adapter"):
        merged(ids)
    merged.unmerge_adapter()
    merged(ids)


def test_reentrant_checkpoints_over_inputs_without_gradients_are_refused() -> None:
    """PyTorch itself warns that nothing within will be trained, and goes on."""
    model, ids = tiny.base("mamba"), tiny.words()
    model.gradient_checkpointing_enable(dict(use_reentrant=True))
    model.disable_input_require_grads()
    model.add_adapter(MambaPeftConfig(methods=["lora_x"]))
    model.train()
    with pytest.raises(UserError, match=r"none reaches the adapter; .* call enable_input_require_grads"):
        model(ids)
    model.enable_input_require_grads()
    with pytest.warns(UserWarning, match=r"reaches .*lora_x_down.* is not known: reentrant checkpoints"):
        model(ids)
