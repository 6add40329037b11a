"""What begins before a text as a cache that the base model starts from."""

from __future__ import annotations

import copy
from typing import Any

import peft_models as tiny
import pytest
import torch
from peft import PeftModel, get_peft_model

from transmamba.errors import UserError
from transmamba.peft import MambaPeftConfig, bake, compile_cache

CASES = [["prompt"], ["affix"], ["initial_state"], ["affix", "initial_state"], tiny.AT_START]
OPTIONS: dict[str, Any] = dict(
    max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None, return_dict_in_generate=True,
    output_logits=True,
)  # fmt: skip


@pytest.mark.parametrize("methods", CASES, ids="+".join)
@pytest.mark.parametrize("model", tiny.MODELS)
def test_the_base_goes_on_from_a_seed_as_the_adapter_does(model: str, methods: list[Any]) -> None:
    adapted, ids = tiny.adapted(model, methods), tiny.words(rows=3)
    wanted = adapted.generate(ids, **OPTIONS)
    seed, base = compile_cache(adapted), tiny.base(model)
    for beams in (1, 2):
        wanted = adapted.generate(ids, **OPTIONS, num_beams=beams)
        with seed.on(base):
            made = base.generate(**seed.inputs(ids, beams=beams), **OPTIONS, num_beams=beams)
        assert torch.equal(made.sequences, wanted.sequences)
        torch.testing.assert_close(torch.stack(made.logits), torch.stack(wanted.logits), atol=1e-4, rtol=0)
    with torch.no_grad():
        assert torch.equal(base(ids).logits, tiny.base(model)(ids).logits)  # itself again


def test_a_seed_knows_what_it_is_not_for() -> None:
    with pytest.raises(UserError, match="lora_x, a cannot be compiled into a cache"):
        compile_cache(tiny.adapted("mamba", ["lora_x", "prompt", "a"]))
    with pytest.raises(UserError, match="modules_to_save: lm_head cannot be compiled into a cache"):
        compile_cache(tiny.adapted("mamba", ["prompt"], modules_to_save=["lm_head"]))
    adapted, ids = tiny.adapted("mamba", ["prompt"]), tiny.words()
    with pytest.raises(UserError, match="no adapter 'other'"):
        compile_cache(adapted, "other")
    seed = compile_cache(adapted)
    with pytest.raises(UserError, match="without padding"):
        seed.inputs(ids, torch.zeros_like(ids))
    with pytest.raises(UserError, match="unload"), seed.on(adapted.get_base_model()):
        pass


def test_a_prompt_s_mlp_is_left_out_exactly(tmp_path: Any) -> None:
    adapted, ids = tiny.adapted("mamba", [{"name": "prompt", "mlp": True}, "lora_x"]), tiny.words()
    with torch.no_grad():
        wanted = adapted(ids).logits
        bake(adapted)
        assert torch.equal(adapted(ids).logits, wanted)
        adapted.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny.base("mamba"), tmp_path)
        assert torch.equal(again(ids).logits, wanted)
    assert not any("prompt_" in name for name, _ in again.named_parameters())
    assert again.peft_config["default"].methods[0]["mlp"] is False


def test_a_seed_of_a_student_s_own_code(tmp_path: Any) -> None:
    """Its cache is of a class of its own."""
    from test_peft_language import made
    from transformers import AutoModelForCausalLM

    import transmamba

    transmamba.save_student(copy.deepcopy(made("own code")), tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    torch.manual_seed(1)
    adapted = get_peft_model(copy.deepcopy(base), MambaPeftConfig(methods=tiny.AT_START)).eval()
    tiny.train_(adapted, size=0.1)
    ids = tiny.words()
    wanted, seed = adapted.generate(ids, **OPTIONS), compile_cache(adapted)
    with seed.on(base):
        made_of = base.generate(**seed.inputs(ids), **OPTIONS)
    assert torch.equal(made_of.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(made_of.logits), torch.stack(wanted.logits), atol=1e-4, rtol=0)
