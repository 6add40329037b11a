"""Adapters as PEFT's users keep them: saved, loaded in other processes, switched, disabled."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import fresh_process
import peft_models as tiny
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from transmamba.peft import MambaPeftConfig

EVERY = ["mamba", "mamba2"]
HYBRID = ["lora_x", "conv1d", "state_offset_h", "lora_embed", "sdt"]
# of an adapter's folder and a file with ids: writes the logits beside them
LOADS = """
import sys
from pathlib import Path
{imports}
from safetensors.torch import load_file, save_file
folder, file = sys.argv[1:]
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
save_file({{"logits": model(load_file(file)["ids"]).logits}}, Path(file).with_name("logits.safetensors"))
"""


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(tiny.words()).logits


@pytest.mark.parametrize(
    "imports", ["import transmamba, peft", "import peft, transmamba", "import transmamba.peft"]
)
def test_a_fresh_process_loads_base_and_adapter_whichever_is_imported_first(
    imports: str, tmp_path: Path
) -> None:
    tiny.base("mamba").save_pretrained(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    from peft import get_peft_model

    adapted = get_peft_model(loaded, MambaPeftConfig(methods=HYBRID, task_type="CAUSAL_LM")).eval()
    tiny.train_(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    save_file({"ids": tiny.words()}, tmp_path / "ids.safetensors")
    program = LOADS.format(imports=imports)
    done = fresh_process.run(program, tmp_path / "adapter", tmp_path / "ids.safetensors")
    assert done.returncode == 0, done.stderr[-2000:]
    made = load_file(tmp_path / "logits.safetensors")["logits"]
    torch.testing.assert_close(made, logits(adapted), atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", EVERY)
def test_two_adapters_switch_and_go(model: str, tmp_path: Path) -> None:
    adapted = tiny.adapted(model, HYBRID)
    adapted.add_adapter("other", MambaPeftConfig(methods=["lora_out", "state_offset_y"]))
    adapted.set_adapter("other")
    tiny.train_(adapted, seed=3)
    other = logits(adapted)
    adapted.set_adapter("default")
    first = logits(adapted)
    assert (first - other).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny.base(model), tmp_path)
    again.load_adapter(tmp_path / "other", "other")
    assert torch.equal(logits(again), first)
    again.set_adapter("other")
    assert torch.equal(logits(again), other)
    again.delete_adapter("other")
    again.set_adapter("default")
    assert torch.equal(logits(again), first)


@pytest.mark.parametrize("model", EVERY)
def test_without_its_adapter_a_model_is_the_base_bit_for_bit(model: str) -> None:
    wanted, adapted = logits(tiny.base(model)), tiny.adapted(model, tiny.METHODS)
    assert not torch.equal(logits(adapted), wanted)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), wanted)
    assert not torch.equal(logits(adapted), wanted)
    assert torch.equal(logits(adapted.unload()), wanted)


@pytest.mark.parametrize("model", EVERY)
def test_transformers_own_calls_take_our_adapters(model: str, tmp_path: Path) -> None:
    adapted = tiny.adapted(model, HYBRID)
    adapted.save_pretrained(tmp_path)
    plain = tiny.base(model)
    plain.load_adapter(tmp_path)
    assert torch.equal(logits(plain), logits(adapted))
    plain.disable_adapters()
    assert torch.equal(logits(plain), logits(tiny.base(model)))
    plain.enable_adapters()
    plain.add_adapter(MambaPeftConfig(methods=["bias"]), "other")
    plain.set_adapter("other")
    torch.testing.assert_close(logits(plain), logits(tiny.base(model)))


def test_kept_weights_follow_every_change() -> None:
    adapted = tiny.adapted("mamba", ["lora_in"])
    before = logits(adapted)
    assert torch.equal(logits(adapted), before)
    with torch.no_grad():
        next(p for p in adapted.parameters() if p.requires_grad).mul_(2)
    assert not torch.equal(logits(adapted), before)
    before, parameter = logits(adapted), next(p for p in adapted.parameters() if p.requires_grad)
    parameter.data = parameter.data * 2  # as optimizers of large models swap what a parameter holds
    assert not torch.equal(logits(adapted), before)
    before, layer = logits(adapted), adapted.get_base_model().backbone.layers[0].mixer
    tensors = layer.transmamba_adapters["default"]
    tensors.lora_in_up = torch.nn.Parameter(tensors.lora_in_up.detach() * 2)
    assert not torch.equal(logits(adapted), before)
    before, projection = logits(adapted), layer.base_layer.in_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach() * 2)
    assert not torch.equal(logits(adapted), before)
    half = logits(adapted.to(torch.float64))
    assert half.dtype == torch.float32 and torch.allclose(half, logits(adapted.to(torch.float32)), atol=1e-4)


def test_the_type_is_a_member_of_peft_s_enumeration_as_any_other() -> None:
    """Made from outside: where a version of PEFT or Python changes what an enumeration is, this says so."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    from transmamba.peft import PEFT_TYPE

    assert PeftType("TRANSMAMBA") is PeftType["TRANSMAMBA"] is PeftType.TRANSMAMBA is PEFT_TYPE
    assert PEFT_TYPE in list(PeftType) and PEFT_TYPE == "TRANSMAMBA" and PEFT_TYPE.value == "TRANSMAMBA"
    assert isinstance(PEFT_TYPE, PeftType) and pickle.loads(pickle.dumps(PEFT_TYPE)) is PEFT_TYPE
    assert copy.deepcopy(PEFT_TYPE) is PEFT_TYPE and len({*PeftType}) == len(PeftType)
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] == "transmamba_"
