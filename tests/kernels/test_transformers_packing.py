"""Packed rows given to the models that people train: each sequence as if alone, or a refusal by name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from test_transformers_patch import assert_near, build
from transformers import PreTrainedModel
from transmamba_kernels import patch_transformers
from transmamba_kernels.transformers_patch import MODELS

MAMBA_2 = ("bamba", "falcon_h1", "mamba2", "nemotron_h", "zamba2")
# granitemoehybrid's attention mixes packed rows unless it is flash attention.
REFUSING = sorted(set(MODELS) - set(MAMBA_2))
LENGTHS = (7, 1, 12)
NAMED = {
    "seq_idx": torch.tensor([0] * 7 + [1] + [2] * 12, dtype=torch.int32)[None],
    "cu_seqlens": torch.tensor([0, 7, 8, 20], dtype=torch.int32),
    "cu_seq_lens_q": torch.tensor([0, 7, 8, 20], dtype=torch.int32),
}
TOKENS = torch.randint(1, 64, (1, 20), generator=torch.Generator().manual_seed(1))
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])[None]


def packed(model: Any, **named: Any) -> torch.Tensor:
    positions = {} if model.config.model_type == "mamba2" else {"position_ids": POSITIONS}
    return model(input_ids=TOKENS, use_cache=False, **{**positions, **named})[0]


def alone(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([model(input_ids=part, use_cache=False)[0] for part in TOKENS.split(LENGTHS, 1)], 1)


def gradients(model: PreTrainedModel, output: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(2)
    (output * torch.randn_like(output)).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("name", MAMBA_2)
def test_sequences_stand_alone(name, named, checkpointing):
    """Logits and gradients; checkpointed layers run again when the forward is over."""
    model = build(name).train()
    with patch_transformers():
        expected = alone(model)
        wanted = gradients(model, expected)
        if checkpointing:
            model.gradient_checkpointing_enable()
        found = packed(model, **{named: NAMED[named]})
        assert_near(found, expected, "logits")
        for parameter, gradient in gradients(model, found).items():
            assert_near(gradient, wanted[parameter], f"gradient of {parameter}")


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("name", REFUSING)
def test_models_that_cannot_are_named(name, named):
    model = build(name).train()
    with patch_transformers():
        for entry in (model, model.base_model):
            with pytest.raises(ValueError, match=f"^{named}: "):
                packed(entry, **{named: NAMED[named]})


@pytest.mark.parametrize("name", ["bamba", "mamba2"])
def test_the_model_without_a_head(name):
    model = build(name).train().base_model
    with patch_transformers():
        assert_near(packed(model, seq_idx=NAMED["seq_idx"]), alone(model), "hidden states")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"position_ids": None}, "position_ids: None, expected positions that begin anew"),
        ({"attention_mask": torch.ones(1, 20, dtype=torch.long)}, "attention_mask: a tensor, expected None"),
        ({"use_cache": True}, "use_cache: on, expected False"),
        ({"use_cache": None}, "use_cache: on, expected False"),
    ],
)
def test_attention_that_would_mix_is_refused(more, says):
    model = build("bamba").train()
    arguments = {
        "input_ids": TOKENS,
        "seq_idx": NAMED["seq_idx"],
        "position_ids": POSITIONS,
        "use_cache": False,
    }
    with patch_transformers(), pytest.raises(ValueError, match=f"^{says}"):
        model(**arguments | more)


@pytest.mark.parametrize("named", NAMED)
def test_mixers_called_by_themselves(named):
    """Below the entries the functions themselves see the argument."""
    with patch_transformers():
        mixer, x = build("mamba2").train().backbone.layers[0].mixer, torch.randn(1, 20, 32)
        found = mixer(x, **{named: NAMED[named]})
        assert_near(found, torch.cat([mixer(part) for part in x.split(LENGTHS, 1)], 1), "output")
        with pytest.raises(ValueError, match=f"^{named}: a tensor, expected None"):
            build("mamba").train().backbone.layers[0].mixer(x, **{named: NAMED[named]})


def test_offsets_of_several_rows_are_refused():
    with patch_transformers(), pytest.raises(ValueError, match="cu_seqlens: offsets with a batch of 2"):
        build("mamba2").train()(TOKENS.view(2, 10), cu_seqlens=NAMED["cu_seqlens"])


def test_a_decode_step_is_refused():
    model = build("mamba2").eval()
    with patch_transformers(), torch.no_grad():
        cache = model(TOKENS, use_cache=True).cache_params
        with pytest.raises(ValueError, match="seq_idx: a tensor, expected None in a decode step"):
            model(TOKENS[:, :1], cache_params=cache, use_cache=True, seq_idx=NAMED["seq_idx"][:, -1:])


def test_compiles_in_one_graph(compiled):
    model = build("mamba2").train()
    with patch_transformers():
        expected = alone(model)
        assert_near(packed(compiled(model), seq_idx=NAMED["seq_idx"]), expected, "logits")


def test_forwards_are_put_back():
    model = build("mamba2")
    kinds = (type(model), type(model.backbone))
    before = [kind.forward for kind in kinds]
    with patch_transformers(["mamba2"]):
        assert [kind.forward for kind in kinds] != before
        assert [inspect.signature(kind.forward) for kind in kinds] == [inspect.signature(f) for f in before]
        packed(model, seq_idx=NAMED["seq_idx"])
    assert [kind.forward for kind in kinds] == before
    assert not [name for name in vars(model.backbone) if "transmamba" in name]
