"""What a call leaves behind, and what of PEFT's interface is refused in a line."""

from __future__ import annotations

import copy
from typing import Any

import peft_models as tiny
import pytest
import torch
from peft import PeftModel, get_peft_model
from randomised import randomise_

from transmamba.errors import UserError
from transmamba.peft import MambaPeftConfig


def test_a_call_under_autocast_leaves_the_next_one_as_it_was() -> None:
    adapted, ids = tiny.adapted("mamba", ["lora_in", "lora_x_proj"]), tiny.words()
    randomise_(adapted)
    adapted.eval()
    with torch.no_grad():
        before = adapted(ids).logits
        adapted.eval()  # forgets what is kept
        with torch.autocast("cpu", torch.bfloat16):
            adapted(ids)
        assert torch.equal(adapted(ids).logits, before)


def test_one_configuration_is_for_many_models(tmp_path: Any) -> None:
    config = MambaPeftConfig(methods=["lora_x"])
    first, second = tiny.base("mamba"), tiny.base("mamba")
    second.backbone.layers = second.backbone.layers[:1]
    adapted = get_peft_model(first, config)
    get_peft_model(second, config)
    adapted.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(tiny.base("mamba"), str(tmp_path))
    assert again.base_model.coverage().mixers == (2, 2) and config.base is None


def test_merged_states_are_out_of_the_configuration_where_adapters_are_disabled() -> None:
    adapted, ids = tiny.adapted("mamba", ["additional_scan"]), tiny.words()
    states = adapted.config.state_size
    plain = tiny.base("mamba").eval()(ids).logits
    adapted.eval().merge_adapter()
    assert adapted.config.state_size == states + 6
    with adapted.disable_adapter():
        assert adapted.config.state_size == states
        torch.testing.assert_close(adapted(ids).logits, plain, rtol=0, atol=0)


def test_what_is_not_offered_is_said() -> None:
    adapted, ids = tiny.adapted("mamba", ["lora_x"]), tiny.words()
    with pytest.raises(UserError, match=r"adapter_names: .*call set_adapter"):
        adapted(input_ids=ids, adapter_names=["__base__"] * len(ids))
    with pytest.raises(UserError, match=r"add_weighted_adapter: .*merge_adapter"):
        adapted.add_weighted_adapter(["default"], [1.0], "both")


@pytest.mark.parametrize(("methods", "whole"), [(["lora_x"], "conv1d"), (["lora_embed"], "embeddings")])
def test_what_is_adapted_is_not_trained_whole_too(methods: list[str], whole: str) -> None:
    base = tiny.base("mamba")
    names = copy.deepcopy([name for name, _ in base.named_modules()])
    with pytest.raises(UserError, match=f"modules_to_save: '{whole}' is .*, which the adapter changes"):
        get_peft_model(base, MambaPeftConfig(methods=methods, modules_to_save=[whole]))
    assert [name for name, _ in base.named_modules()] == names
