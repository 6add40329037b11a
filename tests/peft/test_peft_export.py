"""Our LoRA exported is stock PEFT's: the same logits, loaded by PEFT's own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft_models as tiny
import pytest
import torch
from peft import LoraModel, PeftModel

from transmamba.errors import UserError
from transmamba.peft.export import export_lora

# what stock PEFT lets on Mamba's modules
EXACT = {
    "mamba": ["lora_in", "lora_x", "lora_z", "lora_x_proj", "lora_d", "lora_b", "lora_c", "lora_embed"],
    "mamba2": ["lora_x", "lora_z", "lora_dt", "lora_d", "lora_b", "lora_c", "lora_x_proj", "lora_embed"],
    "bamba": ["lora_in", "lora_out", "lora_z"],
}
CASES = [(model, [method]) for model, methods in EXACT.items() for method in methods]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tiny.words()).logits


@pytest.mark.parametrize("model, methods", [*CASES, *((model, EXACT[model]) for model in EXACT)])
def test_stock_peft_loads_what_is_exported(model: str, methods: list[Any], tmp_path: Path) -> None:
    adapted = tiny.adapted(model, [dict(name=name, r=3 + i, scale=0.5) for i, name in enumerate(methods)])
    export_lora(adapted, tmp_path / "lora")
    stock = PeftModel.from_pretrained(tiny.base(model), tmp_path / "lora")
    assert isinstance(stock.base_model, LoraModel)
    torch.testing.assert_close(logits(stock), logits(adapted), atol=1e-5, rtol=0)
    assert (logits(stock) - logits(tiny.base(model))).abs().max() > 1e-3


def test_layers_apart_are_named_whole(tmp_path: Path) -> None:
    adapted = tiny.adapted("mamba", ["lora_in"], layers_to_transform=[1])
    export_lora(adapted, tmp_path / "lora")
    stock = PeftModel.from_pretrained(tiny.base("mamba"), tmp_path / "lora")
    torch.testing.assert_close(logits(stock), logits(adapted), atol=1e-5, rtol=0)


@pytest.mark.parametrize("whole", ["lm_head", "norm_f", "layers.1"])
def test_modules_trained_whole_are_exported(whole: str, tmp_path: Path) -> None:
    adapted = tiny.adapted("mamba", ["lora_x"], modules_to_save=[whole])
    export_lora(adapted, tmp_path / "lora")
    stock = PeftModel.from_pretrained(tiny.base("mamba"), tmp_path / "lora")
    torch.testing.assert_close(logits(stock), logits(adapted), atol=1e-5, rtol=0)
    with torch.no_grad(), stock.disable_adapter():
        assert torch.equal(logits(stock), logits(tiny.base("mamba")))


@pytest.mark.parametrize("methods", [["lora_x", "bias"], ["state_offset_h"], ["lora_dt"]])
def test_what_is_no_lora_is_not_exported(methods: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="merge the adapter"):
        export_lora(tiny.adapted("mamba", methods), tmp_path / "lora")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        export_lora(tiny.adapted("mamba", ["lora_x"]), tmp_path)


def test_what_stock_peft_keeps_off_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="stock PEFT refuses LoRA on out_proj of a mamba"):
        export_lora(tiny.adapted("mamba", ["lora_out"]), tmp_path / "lora")
    with pytest.raises(ValueError, match="out_proj"):
        PeftModel.from_pretrained(tiny.base("mamba"), tmp_path / "lora")
