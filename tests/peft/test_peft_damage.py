"""Adapters that are damaged or another base's: refused in one line, and the model is as it was before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft_models as tiny
import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from test_peft_students import student
from torch import Tensor, nn

from transmamba.errors import UserError
from transmamba.peft import MambaPeftConfig
from transmamba.peft.student import put_on

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def saved(folder: Path, methods: list[Any], model: str = "mamba", **options: Any) -> Path:
    tiny.adapted(model, methods, **options).save_pretrained(folder)
    return folder


def looks(model: nn.Module) -> dict[str, Any]:
    """What an adapter could leave behind in a model."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return {
        "modules": {name: type(module) for name, module in model.named_modules()},
        "tensors": [*model.state_dict()],
        "adapters": sorted(getattr(inner, "peft_config", {})),
        "noted": getattr(inner, "_hf_peft_config_loaded", False),
        "hooks": [len(module._forward_hooks) for module in model.modules()],
    }


def refused(load: Callable[[], Any], model: nn.Module, said: str) -> None:
    before = looks(model)
    with pytest.raises(UserError, match=said) as error:
        load()
    assert "\n" not in str(error.value)
    assert looks(model) == before


def changed(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def put(end: str, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], Any]:
    def change(tensors: dict[str, Tensor]) -> None:
        key = next(name for name in tensors if name.endswith(end))
        tensors[key] = make(tensors[key])

    return change


DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "a row beyond the last": (put("sdt_rows", lambda t: t.fill_(99)), "sdt_rows has 99, .* below 32"),
    "a row before the first": (put("sdt_columns", lambda t: t.fill_(-1)), "sdt_columns has -1, .* below 32"),
    "a state beyond the last": (put("sdt_states", lambda t: t.fill_(4)), "sdt_states has 4, .* below 4"),
    "rows that are no whole numbers": (put("sdt_rows", lambda t: t.float()), "rows is not of whole numbers"),
    "not a number": (put("lora_x_up", lambda t: t.fill_(torch.nan)), "lora_x_up has numbers .* not finite"),
    "infinity": (put("sdt_a", lambda t: t.fill_(torch.inf)), "sdt_a has numbers that are not finite"),
    "whole numbers": (
        put("lora_x_up", lambda t: t.long()),
        "lora_x_up is not of numbers that can",
    ),
    "a head of nothing": (put("lm_head.weight", lambda t: t * torch.nan), r"lm_head.*weight has numbers"),
}


@pytest.mark.parametrize("through", ["peft", "a second adapter", "a config of the user's own"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_tensors_that_cannot_be_right_are_refused(damage: str, through: str, tmp_path: Path) -> None:
    change, said = DAMAGES[damage]
    methods = ["lora_x", "sdt"]
    folder, model = saved(tmp_path, methods, modules_to_save=["lm_head"]), tiny.base("mamba")
    changed(folder, change)
    if through == "a second adapter":
        adapted = get_peft_model(model, MambaPeftConfig(methods=["d"]))
        refused(lambda: adapted.load_adapter(folder, "second"), adapted, said)
        return
    options = {}
    if through != "peft":
        options["config"] = MambaPeftConfig(methods=methods, modules_to_save=["lm_head"])
    refused(lambda: PeftModel.from_pretrained(model, folder, **options), model, said)
    model.train()(tiny.words())  # nothing watches it any more
    put_back = get_peft_model(model, MambaPeftConfig(methods=["d"]))
    put_back.train()(tiny.words())


def test_tensors_that_are_missing_are_said_before_the_model_is_changed(tmp_path: Path) -> None:
    folder, model = saved(tmp_path, ["lora_x"]), tiny.base("mamba")
    (folder / WEIGHTS).unlink()
    refused(lambda: PeftModel.from_pretrained(model, folder), model, f"has no {WEIGHTS}")
    adapted = get_peft_model(model, MambaPeftConfig(methods=["d"]))
    refused(lambda: adapted.load_adapter(folder, "second"), adapted, f"has no {WEIGHTS}")
    assert [*adapted.peft_config] == ["default"]
    alone = MambaPeftConfig(methods=["a"])  # of no model yet: it may lie in a folder without tensors
    alone.save_pretrained(tmp_path / "alone")
    assert MambaPeftConfig.from_pretrained(tmp_path / "alone").methods == alone.methods


@pytest.mark.parametrize("text", ["{", "[]", '"lora"', ""])
def test_a_configuration_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    folder, model = saved(tmp_path, ["lora_x"]), tiny.base("mamba")
    (folder / CONFIG).write_text(text)
    refused(lambda: MambaPeftConfig.from_pretrained(folder), model, f"{CONFIG} is damaged")
    refused(lambda: put_on(model, folder), model, f"{CONFIG} is damaged")
    before = looks(model)
    with pytest.raises((ValueError, TypeError, UserError)):  # PEFT's own: it says nothing of ours yet
        PeftModel.from_pretrained(model, folder)
    assert looks(model) == before


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("base", "mamba", "base: 'mamba' says nothing of sizes"),
        ("base", {"sizes": 3}, "says nothing of sizes"),
        ("base", [1], "says nothing of sizes"),
        ("methods", 3, "methods: 3"),
        ("target_modules", 3, "target_modules: 3; write"),
        ("exclude_modules", [1], r"exclude_modules: \[1\]; write"),
        ("layers_to_transform", "0", "layers_to_transform: '0'; write a number"),
        ("layers_to_transform", True, "layers_to_transform: True; write a number"),
        ("modules_to_save", "lm_head", "modules_to_save: 'lm_head'; write a list"),
    ],
)
def test_fields_of_other_types_are_refused(key: str, value: Any, said: str, tmp_path: Path) -> None:
    folder, model = saved(tmp_path, ["lora_x"]), tiny.base("mamba")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {key: value}))
    refused(lambda: PeftModel.from_pretrained(model, folder), model, said)
    refused(lambda: model.load_adapter(folder), model, said)


def test_a_refused_reload_leaves_the_adapter_that_is_there(tmp_path: Path) -> None:
    """With what it had learned, however its weights are put in again; then others are."""
    folder = saved(tmp_path, ["lora_x"], modules_to_save=["lm_head"])
    good, wanted = load_file(folder / WEIGHTS), tiny.adapted("mamba", ["lora_x"], modules_to_save=["lm_head"])
    bad = {name: tensor * torch.nan if "lora_x_up" in name else tensor for name, tensor in good.items()}
    fresh = get_peft_model(
        tiny.base("mamba"), MambaPeftConfig(methods=["lora_x"], modules_to_save=["lm_head"])
    )
    loaded = PeftModel.from_pretrained(tiny.base("mamba"), folder, is_trainable=True)
    save_file(bad, folder / WEIGHTS)
    for model in (fresh, loaded):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        said = "lora_x_up has numbers .* not finite"
        for load in (
            lambda model=model: set_peft_model_state_dict(model, bad),
            lambda model=model: model.load_adapter(folder, "default", is_trainable=True),  # a Trainer's
            lambda model=model: set_peft_model_state_dict(model, bad),
        ):
            refused(load, model, said)
            after = model.state_dict()
            assert after.keys() == state.keys() and all(torch.equal(after[key], state[key]) for key in state)
        set_peft_model_state_dict(model, good)
        with torch.no_grad():
            assert torch.equal(model.eval()(tiny.words()).logits, wanted(tiny.words()).logits)


def test_a_config_of_a_folder_without_tensors_is_read(tmp_path: Path) -> None:
    folder = saved(tmp_path, ["lora_x"])
    (folder / WEIGHTS).unlink()
    config = MambaPeftConfig.from_pretrained(folder)
    assert [method.name for method in config.parts] == ["lora_x"]
    get_peft_model(tiny.base("mamba"), config)  # to be trained anew
    model = tiny.base("mamba")
    refused(lambda: PeftModel.from_pretrained(model, folder, config=config), model, f"has no {WEIGHTS}")


def more_classes() -> nn.Module:
    model = student("vim")
    model.reset_classifier(7)
    return model


OTHERS: dict[str, tuple[Callable[[Path], Any], Callable[[], nn.Module], str]] = {
    "more layers": (
        lambda folder: saved(folder, ["lora_x"], layers_to_transform=[0]),
        lambda: tiny.mamba(num_hidden_layers=4),
        "it is on a model of 2 mixers, and here are a model of 4 mixers",
    ),
    "another architecture": (
        lambda folder: saved(folder, ["prompt"]),
        tiny.mamba2,
        "it is on mamba, and here are mamba2",
    ),
    "more words": (
        lambda folder: saved(folder, ["prompt"]),
        lambda: tiny.mamba(vocab_size=40),
        "it is on 31 words, and here are 40 words",
    ),
    "more classes": (
        lambda folder: get_peft_model(
            student("vim"), MambaPeftConfig(methods=["lora_x"], modules_to_save=["head"])
        ).save_pretrained(folder),
        more_classes,
        "it is on 5 classes, and here are 7 classes",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_base_of_the_same_sizes_is_refused(case: str, tmp_path: Path) -> None:
    save, make, said = OTHERS[case]
    save(tmp_path)
    model = make()
    refused(lambda: PeftModel.from_pretrained(model, tmp_path), model, f"another base: {said}")
    config = json.loads((tmp_path / CONFIG).read_text())
    for key in ("architecture", "mixers", "vocabulary", "classes"):  # as adapters were saved before
        del config["base"][key]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    if case != "more classes":  # there PEFT itself refuses the head's shapes
        PeftModel.from_pretrained(model, tmp_path)


@pytest.mark.parametrize("first", ["add_adapter", "load_adapter"])
def test_transformers_own_calls_go_on_behind_a_refused_adapter(first: str, tmp_path: Path) -> None:
    """transformers notes an adapter before it is there, and takes nothing back."""
    folder, model = saved(tmp_path / "adapter", ["lora_x"]), tiny.base("mamba")
    if first == "add_adapter":
        refused(lambda: model.add_adapter(MambaPeftConfig(methods=["cls_token"])), model, "cls_token")
    else:
        other = tiny.mamba(hidden_size=24, time_step_rank=3)
        refused(lambda: other.load_adapter(folder), other, "another base")
        other.save_pretrained(tmp_path / "other")
    model.save_pretrained(tmp_path / "plain")
    model.add_adapter(MambaPeftConfig(methods=["d"]), "good")
    refused(lambda: model.add_adapter(MambaPeftConfig(methods=["pos_embed"]), "bad"), model, "pos_embed")
    assert [*model.peft_config] == ["good"] and model.active_adapters() == ["good"]
    model.load_adapter(folder, "another")
    model.save_pretrained(tmp_path / "adapted")
    assert (tmp_path / "adapted" / CONFIG).is_file()
