"""`transmamba inspect`: what a model is, from its configuration alone or held against its own code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import transmamba
from transmamba import UserError

SHAPE: dict[str, Any] = dict(img_size=8, patch_size=2, embed_dim=32, depth=3, num_heads=2, num_classes=5)


def llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
    config = LlamaConfig(**{**shape, "num_key_value_heads": 2, "vocab_size": 61, **changes})
    return LlamaForCausalLM(config).eval()


def test_a_module_in_hand() -> None:
    found = transmamba.inspect(timm.create_model("vit_tiny_patch16_224", **SHAPE), check=True)
    image = found.towers["image"]
    assert (image["width"], image["blocks"], image["head"]["classes"]) == (32, 3, 5)
    assert image["embedding"]["grid"] == [4, 4] and image["embedding"]["special"] == ["cls"]
    (run,) = image["sublayers"]
    assert (run["first"], run["last"], run["of"][0]["heads"], run["of"][1]["neurons"]) == (0, 2, 2, 128)
    assert found.students == {"vim": None, "ssd_vit": None}
    assert found.difference is not None and found.difference < 1e-5
    assert {"logits", "stream.image.0", "stream.image.2"} <= found.differences.keys()


def test_blocks_that_differ_are_told_apart() -> None:
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
    config = SmolLM3Config(
        **{**shape, "num_key_value_heads": 2, "vocab_size": 61, "no_rope_layers": [1, 1, 0, 1]},
        pad_token_id=0,
    )
    runs = transmamba.inspect(SmolLM3ForCausalLM(config)).towers["decoder"]["sublayers"]
    assert [(run["first"], run["last"], run["of"][0]["rope"]) for run in runs] == [
        (0, 1, "default"),
        (2, 2, "none"),
        (3, 3, "default"),
    ]


def test_a_configuration_is_enough(tmp_path: Path) -> None:
    """Without weights beside it, whatever its size."""
    llama().config.save_pretrained(tmp_path)
    found = transmamba.inspect(tmp_path)
    assert found.kind == "causal_lm" and found.difference is None
    assert found.parameters == sum(p.numel() for p in llama().parameters())
    attention, mlp = found.towers["decoder"]["sublayers"][0]["of"]
    assert (attention["heads"], attention["kv_heads"], attention["head_size"]) == (4, 2, 8)
    assert mlp["gated"] and mlp["neurons"] == 48
    assert all("needs a teacher of images" in str(why) for why in found.students.values())
    with pytest.raises(UserError):
        transmamba.inspect(tmp_path, check=True)


def test_the_command(command: Callable[..., Any], tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "m")
    shown = command("inspect", tmp_path / "m", "--check")
    assert shown.code == 0, shown.err
    for words in ("width 32", "0-3", "kv heads 2", "RMSNorm", "head size 8", "difference", "gated"):
        assert words in shown.out, words
    plain = json.loads(command("inspect", tmp_path / "m", "--check", "--json").out)
    assert plain["difference"] == max(plain["differences"].values()) < 1e-5
    assert plain["towers"]["decoder"]["head"] == {"kind": "next word", "vocabulary": 61, "tied": False}


def test_the_difference_is_what_acts_beside_the_weights() -> None:
    model = llama()
    model.model.layers[1].register_forward_hook(lambda module, given, made: made * 1.5)
    found = transmamba.inspect(model, check=True)
    assert found.differences["stream.decoder.0"] < 1e-5
    assert found.differences["stream.decoder.1"] > 0.05 and found.difference == max(
        found.differences.values()
    )


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"])
def test_what_cannot_be_expressed_is_named(command: Callable[..., Any], name: str) -> None:
    done = command("inspect", name)
    assert done.code == 0 and "cannot be expressed" in done.out and len(done.out.splitlines()) == 1
    found = transmamba.inspect(name)
    assert found.refused is not None and not found.towers


@pytest.mark.parametrize("name", ["vit_tiny_patch16_22", "no/such/folder", "file.gguf"])
def test_what_is_no_model_is_a_mistake(command: Callable[..., Any], name: str) -> None:
    done = command("inspect", name)
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1 and name in done.err


def test_a_file_of_weights(command: Callable[..., Any], tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "w.pth")
    done = command("inspect", tmp_path / "w.pth", "--architecture", "vit_tiny_patch16_224", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["towers"]["image"]["blocks"] == 12


def test_a_text_teacher_makes_no_image_student(command: Callable[..., Any], tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "m")
    for words in (
        ("convert", tmp_path / "m", tmp_path / "out"),
        ("evaluate", tmp_path / "m", "--data", "digits"),
    ):
        done = command(*words)
        assert done.code == 2 and "image" in done.err and "Traceback" not in done.err, done.err


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (dict(architectures=["MyViT"]), 0),
        (dict(hidden_act="foo"), 2),
        (dict(model_type=["vit"]), 2),
        (dict(num_hidden_layers=0), 0),
    ],
)
def test_a_config_by_another_hand(
    command: Callable[..., Any], change: dict[str, Any], code: int, tmp_path: Path
) -> None:
    from transformers import ViTConfig

    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    done = command("inspect", tmp_path)
    assert done.code == code and "Traceback" not in done.err, done.err


def test_a_module_that_does_not_run_is_one_line() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **SHAPE)
    model.forward = lambda x: x.nothing
    with pytest.raises(UserError, match="own forward fails"):
        transmamba.inspect(model, check=True)
    with torch.device("meta"):
        empty = timm.create_model("vit_tiny_patch16_224", **SHAPE)
    with pytest.raises(UserError, match="without weights"):
        transmamba.inspect(empty, check=True)
