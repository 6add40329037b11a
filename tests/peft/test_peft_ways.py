"""Other ways in which people run models: half precision, checkpoints, copies, inference mode, PEFT's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft_models as tiny
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from transmamba.errors import UserError
from transmamba.peft import MambaPeftConfig


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(tiny.words()).logits


@pytest.mark.parametrize("model", ["mamba", "mamba2"])
def test_in_bfloat16_adapters_are_in_float32_and_close(model: str) -> None:
    wanted = logits(tiny.adapted(model, tiny.METHODS))
    half = get_peft_model(tiny.base(model).to(torch.bfloat16), MambaPeftConfig(methods=tiny.METHODS)).eval()
    trained = [p for p in half.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    source = [p for p in tiny.adapted(model, tiny.METHODS).parameters() if p.requires_grad]
    with torch.no_grad():
        for mine, theirs in zip(trained, source, strict=True):
            mine.copy_(theirs)
    assert (logits(half) - wanted).abs().max() < 0.1 * wanted.abs().max()
    ids = tiny.words()
    half.train()(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
    assert half.eval().generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 10)


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_checkpoints_gradients_are_the_same(reentrant: bool) -> None:
    ids, gradients = tiny.words(), []
    for checkpoints in (False, True):
        adapted = tiny.adapted("mamba", ["lora_x", "state_offset_h", "lora_embed"]).train()
        if checkpoints:
            adapted.gradient_checkpointing_enable(dict(use_reentrant=reentrant))
        adapted(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_copies_and_inference_mode() -> None:
    adapted = tiny.adapted("mamba", tiny.METHODS)
    wanted, copied = logits(adapted), copy.deepcopy(adapted)
    with torch.inference_mode():
        assert torch.equal(copied(tiny.words()).logits, wanted)
        assert torch.equal(copied(tiny.words()).logits, wanted)
        made = tiny.adapted("mamba", tiny.METHODS)
        torch.testing.assert_close(made(tiny.words()).logits, wanted)
    ids = tiny.words()
    copied.train()(ids, labels=ids).loss.backward()
    assert torch.equal(logits(adapted), wanted)


def test_peft_s_own_tools(tmp_path: Path) -> None:
    adapted = tiny.adapted("mamba", ["lora_x", "sdt"], modules_to_save=["norm_f"])
    status = adapted.get_model_status()
    assert status.peft_types == {"default": "TRANSMAMBA"} and status.available_adapters == ["default"]
    assert status.trainable_params == adapted.get_nb_trainable_parameters()[0]
    assert status.trainable_params == adapted.coverage().trained
    adapted.save_pretrained(tmp_path)
    lean = PeftModel.from_pretrained(tiny.base("mamba"), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(lean), logits(adapted))
    lean.set_requires_grad("default", True)
    assert lean.coverage().trained > 0


def test_a_merged_adapter_is_put_back_when_it_is_disabled_or_another_is_chosen() -> None:
    adapted, wanted = tiny.adapted("mamba", ["lora_x", "additional_scan"]), logits(tiny.base("mamba"))
    trained = logits(adapted)
    adapted.merge_adapter()
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), wanted)
    assert torch.equal(logits(adapted), trained)


def test_quantised_weights_are_refused() -> None:
    model = tiny.base("mamba")
    linear = model.backbone.layers[1].mixer.in_proj
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"layers.1.mixer holds quantised weights \(torch.int8\)"):
        get_peft_model(model, MambaPeftConfig(methods=["lora_x"]))
