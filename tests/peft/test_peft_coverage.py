"""What an adapter reaches, and how many parameters it has: those of the papers' tables."""

from __future__ import annotations

import copy
from typing import Any

import peft_models as tiny
import pytest
import torch
from peft import get_peft_model

from transmamba.peft import MambaPeftConfig

# (width, layers) of state-spaces/mamba-*-hf, and the shares in % that papers print (in, x, additional-scan),
# or that follow from the formulas that give those
SHAPES = {"130m": (768, 24), "370m": (1024, 48), "790m": (1536, 48), "1.4b": (2048, 48), "2.8b": (2560, 64)}
SHARES = {
    "lora_in": (2.23, 2.07, 1.47, 1.13, 0.94),
    "lora_x": (2.67, 2.48, 1.75, 1.36, 1.12),
    "lora_out": (3.95, 3.67, 2.61, 2.02, 1.68),
    "conv1d": (0.114, 0.106, 0.074, 0.057, 0.047),
    "bitfit": (0.057, 0.053, 0.037, 0.029, 0.024),
    "additional_scan": (0.511, 0.474, 0.334, 0.257, 0.213),
    "state_offset_h": (0.455, 0.422, 0.297, 0.229, 0.189),
    "a": (0.455, 0.422, 0.297, 0.229, 0.189),
    "state_offset_y": (0.029, 0.027, 0.019, 0.014, 0.012),
}


def on_meta(width: int, layers: int) -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    with torch.device("meta"):
        return MambaForCausalLM(MambaConfig(hidden_size=width, num_hidden_layers=layers, vocab_size=50280))


def counts(model: Any, methods: list[Any]) -> tuple[int, int]:
    """(trained, of the base with its trained ones), and the base as it was again."""
    adapted = get_peft_model(model, MambaPeftConfig(methods=methods))
    found = adapted.coverage()
    adapted.unload()
    return found.trained, found.trained + found.parameters


@pytest.mark.parametrize("size", SHAPES)
def test_parameters_are_those_of_the_papers(size: str) -> None:
    model, place = on_meta(*SHAPES[size]), list(SHAPES).index(size)
    for method, shares in SHARES.items():
        trained, whole = counts(model, [method])
        digits = 2 if shares[place] > 0.9 else 3
        assert round(100 * trained / whole, digits) == pytest.approx(shares[place], abs=1.01 * 10**-digits), (
            method
        )


def test_parameters_are_the_formulas_numbers() -> None:
    """The formulas by hand, of a Mamba with d = 16, D = 32, N = 4, R = 3, K = 4, two layers and 31 words."""
    d, D, N, R, K, V, layers = 16, 32, 4, 3, 4, 31, 2
    wanted = {
        "lora_in": 32 * (d + 2 * D), "lora_x": 64 * (d + D), "lora_z": 64 * (d + D), "lora_out": 96 * (D + d),
        "lora_x_proj": 64 * (D + R + 2 * N), "lora_dt": 64 * (R + D), "lora_d": 64 * (D + R),
        "lora_b": 64 * (D + N), "lora_c": 64 * (D + N), "a": D * N, "d": D, "conv1d": K * D, "bias": D,
        "bitfit": 2 * D, "additional_scan": 3 * 6 * D, "parallel_adapter": 32 * (D + d),
        "state_offset_h": D * N, "state_offset_y": D, "sdt": 1 + 2 * N,
    }  # fmt: skip
    for method, count in wanted.items():
        assert counts(tiny.base("mamba"), [method])[0] == layers * count, method
    assert counts(tiny.base("mamba"), ["lora_embed"])[0] == 32 * (V + d)
    low_rank = {"name": "state_offset_h", "r": 2, "ratio": 4}
    assert counts(tiny.base("mamba"), [low_rank])[0] == layers * 2 * (D // 4 + N * 4)


def test_coverage_is_counted_and_said_once_when_training_starts(capsys: Any) -> None:
    adapted, ids = tiny.adapted("bamba", ["lora_x", "bias"]), tiny.words()
    found = adapted.coverage()
    base = adapted.get_base_model()
    mixer = base.model.layers[0].mamba.base_layer
    assert found.mixers == (1, 1) and found.methods == ("lora_x", "bias")
    assert found.adapted == sum(p.numel() for p in mixer.parameters())
    assert found.parameters == sum(p.numel() for p in tiny.base("bamba").parameters())
    assert found.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    linear = sum(m.weight.numel() for m in base.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv1d))
    scan, inside = 3 * 32 * 4, mixer.in_proj.weight.numel() + mixer.out_proj.weight.numel()
    assert found.flops == (inside + mixer.conv1d.weight.numel() + scan) / (linear + scan)
    with torch.no_grad():
        adapted(ids)
    assert "mixers" not in capsys.readouterr().err
    adapted.train()
    adapted(ids)
    adapted(ids)
    said = capsys.readouterr().err
    assert said.count(str(found)) == 1 and "1 of 1 mixers" in said and "%" in said


def test_it_is_said_whoever_calls_the_model(capsys: Any) -> None:
    """PEFT's model without a task, transformers' add_adapter, a copy; never once it is out again."""
    ids = tiny.words()
    for way in ("no task", "transformers", "a copy", "unloaded"):
        model = tiny.base("mamba")
        config = MambaPeftConfig(methods=["lora_x"])
        if way == "transformers":
            model.add_adapter(config)
        else:
            model = get_peft_model(model, config)
        if way == "a copy":
            model = copy.deepcopy(model)
        if way == "unloaded":
            model = model.unload()
        model.train()
        model(ids)
        model(ids)
        assert capsys.readouterr().err.count("2 of 2 mixers") == (way != "unloaded"), way


def test_layers_that_are_left_out_are_counted_and_mixers_that_nobody_knows() -> None:
    adapted = tiny.adapted("mamba", ["a"], layers_to_transform=[1])
    assert adapted.coverage().mixers == (1, 2)
    layers = adapted.get_base_model().backbone.layers
    layers[0].mixer.__class__ = type("Other", (type(layers[0].mixer),), {"forward": lambda self, x: x})
    assert adapted.coverage().mixers == (1, 2)
