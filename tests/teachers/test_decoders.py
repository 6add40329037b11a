"""Language models as teachers: their view is the model, stream by stream; padded and packed rows are the rows
alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders_made import DECODERS, LENGTH, SHAPE, WORDS, make
from torch import Tensor, nn

from transmamba import adapt_teacher, load_teacher
from transmamba.errors import UserError
from transmamba.teachers.causal_lm import CausalLanguageModel
from transmamba.teachers.check import differences

NAMES = sorted(DECODERS)


def texts(rows: int = 3, length: int = LENGTH) -> Tensor:
    return torch.randint(3, WORDS, (rows, length), generator=torch.Generator().manual_seed(1))


def logits_of(model: Any, text: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=text, use_cache=False).logits


def near(made: Tensor, wanted: Tensor, most: float = 1e-5) -> None:
    assert (made - wanted).abs().max() <= most * wanted.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_every_stream_and_the_logits_are_the_model_s(name: str) -> None:
    model = make(name)
    teacher = adapt_teacher(model)
    found = differences(teacher, CausalLanguageModel.original(model), {"text": texts()})
    assert {"logits", "stream.decoder.0", "stream.decoder.2"} <= found.keys()
    assert max(found.values()) <= 1e-5, found
    near(teacher({"text": texts()}).logits(), logits_of(model, texts()))
    assert teacher.vocabulary == WORDS and teacher.num_classes is None and teacher.preprocessing is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_in_half_precision_it_rounds_where_the_model_does(name: str, dtype: torch.dtype) -> None:
    """A norm that rounded elsewhere would be a few of its roundings off."""
    model = make(name).to(dtype)
    found = differences(adapt_teacher(model), CausalLanguageModel.original(model), {"text": texts()})
    assert max(found.values()) <= torch.finfo(dtype).eps / 4, found


@pytest.mark.parametrize("name", NAMES)
def test_padded_and_packed_rows_are_the_rows_alone(name: str) -> None:
    """The model itself is given each row alone, so nothing here rests on how it masks."""
    model, lengths = make(name), (7, 12, 4)
    teacher, rows = adapt_teacher(model), [texts(1, n)[0] for n in lengths]
    alone = [logits_of(model, row[None])[0] for row in rows]
    for side in ("left", "right"):
        text, mask = torch.zeros(3, 12, dtype=torch.int64), torch.zeros(3, 12, dtype=torch.bool)
        for i, row in enumerate(rows):
            place = slice(12 - len(row), 12) if side == "left" else slice(0, len(row))
            text[i, place], mask[i, place] = row, True
        made = teacher({"text": text, "text_mask": mask}).logits()
        for i, wanted in enumerate(alone):
            near(made[i][mask[i]], wanted)
    packed = torch.cat(rows)[None]
    segment = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]).int()[None]
    near(teacher({"text": packed, "text_segment": segment}).logits()[0], torch.cat(alone))


@pytest.mark.parametrize("name", NAMES)
def test_folded_it_computes_the_same(name: str) -> None:
    """In float64, with a head of its own where it was tied."""
    model = make(name).double()
    teacher = adapt_teacher(model)
    folded = teacher.fold()
    near(folded({"text": texts()}).logits(), teacher({"text": texts()}).logits(), 1e-6)
    tower = folded.view.towers["decoder"]
    assert all(sublayer.norm.weight is None for sublayer in tower.sublayers) and tower.norm is not None
    head = folded.view.heads["decoder"]
    assert not head.tied and head.linear.weight is not tower.embedding.weight  # type: ignore[union-attr]
    near(teacher({"text": texts()}).logits(), logits_of(model, texts()), 1e-6)


@pytest.mark.parametrize("name", ["Llama 3 (llama3 RoPE)", "SmolLM (tied)", "Qwen2 (QKV biases)", "GPT-2"])
def test_a_folder_is_read_in_its_own_precision(name: str, tmp_path: Path) -> None:
    make(name).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    teacher = load_teacher(tmp_path / "model")
    assert teacher.view.tensor.dtype == torch.bfloat16
    assert teacher({"text": texts()}).logits().dtype == torch.bfloat16
    make(name).save_pretrained(tmp_path / "wide")
    near(load_teacher(tmp_path / "wide")({"text": texts()}).logits(), logits_of(make(name), texts()))


class Adapted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.3 * x.mean(dim=-1, keepdim=True)


@pytest.mark.parametrize("part", ["q_proj", "gate_proj", "norm", "hook"])
def test_what_acts_beside_the_weights_is_refused(part: str) -> None:
    model = make("Llama 2")
    layer = model.model.layers[1]
    if part == "hook":
        layer.register_forward_hook(lambda module, given, made: made * 1.1)
    elif part == "norm":
        layer.input_layernorm.forward = lambda x: x
    else:
        owner = layer.self_attn if part == "q_proj" else layer.mlp
        old = getattr(owner, part)
        new = Adapted(old.in_features, old.out_features, bias=False)
        new.load_state_dict(old.state_dict())
        setattr(owner, part, new)
    with pytest.raises(UserError) as error:
        adapt_teacher(model)
    assert "layers.1" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("Gemma2Config", "gemma2"),
        ("Phi3Config", "phi3"),
        ("MixtralConfig", "mixtral"),
        ("MambaConfig", "mamba"),
    ],
)
def test_a_decoder_that_no_view_expresses_is_refused_by_name(config: str, named: str, tmp_path: Path) -> None:
    import transformers

    getattr(transformers, config)().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"model_type={named}.*known: .*llama.*gpt2") as error:
        load_teacher(tmp_path)
    assert "\n" not in str(error.value)


def test_moving_frequencies_are_refused() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    scaled = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(UserError, match="rope_type=dynamic"):
        adapt_teacher(LlamaForCausalLM(LlamaConfig(**{**SHAPE, "rope_parameters": scaled})))


def damage(folder: Path, how: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if how == "a shard is gone":
        next(folder.glob("model-00002-*.safetensors")).unlink()
    elif how == "a layer too many in the config":
        config["num_hidden_layers"] += 1
    elif how == "a layer too few in the config":
        config["num_hidden_layers"] -= 1
    elif how == "another width in the config":
        config["hidden_size"] = 64
    elif how == "an unknown activation in the config":
        config["hidden_act"] = "swishy"
    elif how == "heads that do not divide the width":
        config["num_attention_heads"] = 5
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("a shard is gone", "model-00002"),
        ("a layer too many in the config", "lacks model.layers.3"),
        ("a layer too few in the config", "no place for: model.layers.2"),
        (
            "another width in the config",
            "layers.0.input_layernorm.weight is (32,), its config says (64,)",
        ),
        ("an unknown activation in the config", "'swishy' is unknown"),
        ("heads that do not divide the width", "(32) is not a multiple of the number of attention heads (5)"),
    ],
)
def test_weights_and_config_that_disagree_are_one_line(how: str, said: str, tmp_path: Path) -> None:
    make("Llama 2").save_pretrained(tmp_path / "m", max_shard_size="40KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    damage(tmp_path / "m", how)
    with pytest.raises(UserError) as error:
        load_teacher(tmp_path / "m")
    assert (
        said in str(error.value) and "\n" not in str(error.value) and str(tmp_path / "m") in str(error.value)
    )


def test_a_model_that_is_loaded_is_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in hand: a library may read a folder into a module whose weights do not say all that acts."""
    make("Llama 2").save_pretrained(tmp_path)
    plain = CausalLanguageModel.load

    def load(part: CausalLanguageModel) -> nn.Module:
        model: Any = plain(part)
        model.model.layers[1].register_forward_hook(lambda module, given, made: made * 1.1)
        return model

    monkeypatch.setattr(CausalLanguageModel, "load", load)
    with pytest.raises(UserError, match=r"layers\.1 \(a forward hook\)"):
        load_teacher(tmp_path)
