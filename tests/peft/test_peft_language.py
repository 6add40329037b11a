"""Adapters on the language student: as it is trained, and as its saved class runs it elsewhere."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path
from typing import Any

import peft_models as tiny
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from transmamba.errors import UserError
from transmamba.peft import MambaPeftConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "students"))
import hybrids

# Bamba has no norms on keys and queries, Qwen3 has: its student is saved with code of ours
TEACHERS = {"stock": hybrids.llama, "own code": hybrids.qwen3}


@functools.cache
def made(kind: str) -> Any:
    student = hybrids.hybrid(TEACHERS[kind](num_hidden_layers=2), 1)
    return hybrids.moved(student).eval().requires_grad_(False)


def methods_of(kind: str) -> list[str]:
    return [name for name in tiny.METHODS if kind == "stock" or name != "additional_scan"]


def adapted(kind: str, methods: list[str], trained: bool = True) -> Any:
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(made(kind)), MambaPeftConfig(methods=methods)).eval()
    if trained:
        tiny.train_(model, size=0.1)
    return model


def logits(model: Any, text: Tensor) -> Tensor:
    with torch.no_grad():
        return model.run({"text": text}).logits()


@pytest.mark.parametrize("kind", TEACHERS)
def test_all_methods_on_the_student(kind: str, tmp_path: Path) -> None:
    """Identity, gradients, and the adapter on the class that the student is saved as."""
    import transmamba

    text, wanted = hybrids.texts(2, 9), logits(made(kind), hybrids.texts(2, 9))
    still = [method for method in methods_of(kind) if method not in tiny.RANDOM]
    fresh = logits(adapted(kind, still, trained=False).get_base_model(), text)
    torch.testing.assert_close(fresh, wanted, atol=1e-5, rtol=0)
    model = adapted(kind, methods_of(kind))
    trained = logits(model.get_base_model(), text)
    assert (trained - wanted).abs().max() > 1e-2
    model.get_base_model().run({"text": text}).logits().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name
    model.save_pretrained(tmp_path / "adapter")
    transmamba.save_student(copy.deepcopy(made(kind)), tmp_path / "student")
    from transformers import AutoModelForCausalLM

    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student", trust_remote_code=kind != "stock")
    elsewhere = PeftModel.from_pretrained(saved, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(elsewhere(text).logits, trained, atol=1e-4, rtol=0)
    options = dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)
    runs = [elsewhere.generate(text, use_cache=cached, pad_token_id=0, **options) for cached in (True, False)]
    torch.testing.assert_close(torch.stack(runs[0].logits), torch.stack(runs[1].logits), atol=1e-4, rtol=0)


def test_padding_and_documents_are_kept_apart_inside() -> None:
    """A masked row is the row alone, and a packed row its documents alone, by the family's own run."""
    model = adapted(
        "stock", ["state_offset_h", "lora_x", "parallel_adapter", *tiny.AT_START]
    ).get_base_model()
    text, mask = hybrids.texts(1, 8), torch.ones(1, 8, dtype=torch.bool)
    mask[:, :3] = False
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]], dtype=torch.int32)
    with torch.no_grad():
        alone = model.run({"text": text[:, 3:]}).logits()
        masked = model.run({"text": text, "text_mask": mask}).logits()[:, 3:]
        packed = model.run({"text": text, "text_segment": segments}).logits()[:, 3:]
    torch.testing.assert_close(masked, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)


def test_merged_into_the_student() -> None:
    model, text = adapted("stock", tiny.MERGED), hybrids.texts(2, 9)
    wanted = logits(model.get_base_model(), text)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, text), wanted, atol=1e-5, rtol=0)
    assert merged.config.mamba_d_state == made("stock").config.mamba_d_state + 6


def test_an_embedding_merged_into_a_student_is_saved_beside_its_head(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    import transmamba

    student = hybrids.hybrid(hybrids.llama(num_hidden_layers=2, tie_word_embeddings=True), 1).eval()
    assert student.lm_head.weight is student.model["embed_tokens"].weight
    text, model = hybrids.texts(2, 9), get_peft_model(student, MambaPeftConfig(methods=["lora_embed"])).eval()
    tiny.train_(model)
    wanted = logits(model.get_base_model(), text)
    transmamba.save_student(model.merge_and_unload(), tmp_path / "student")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    with torch.no_grad():
        torch.testing.assert_close(saved(text).logits, wanted, atol=1e-4, rtol=0)


def test_an_adapter_that_only_peft_knows_is_said_where_it_would_be_left_out(tmp_path: Path) -> None:
    import transmamba
    from transmamba.peft.student import tune

    text, model = hybrids.texts(2, 5), adapted("stock", ["lora_x"])
    student = model.get_base_model()
    for call in (
        lambda: student.generate({"text": text}, 3),
        lambda: transmamba.save_student(student, tmp_path / "student"),
    ):
        with pytest.raises(UserError, match=r"adapter that PEFT put on it.* merge_and_unload\(\)") as refused:
            call()
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "student").exists()
    wanted = logits(student, text)
    merged = model.merge_and_unload()
    written = merged.generate({"text": text}, 3)
    transmamba.save_student(merged, tmp_path / "student")
    torch.testing.assert_close(logits(transmamba.load_student(tmp_path / "student"), text), wanted)
    tuned = copy.deepcopy(made("stock"))
    tune(tuned, MambaPeftConfig(methods=["lora_x"]))
    tiny.train_(tuned.eval(), size=0.1)
    tuned.generate({"text": text}, 3)
    transmamba.save_student(tuned, tmp_path / "tuned")
    assert written.shape[1] == 3 and (tmp_path / "tuned").is_dir()
