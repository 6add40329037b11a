"""`transmamba inspect`: what a model is, from its configuration alone or held against its own code."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from small_gguf import save_gguf

import transmamba
from transmamba import UserError
from transmamba.teachers.causal_lm import CausalLanguageModel

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
    clip = found.students["clip"]
    assert found.students == {
        "vim": None,
        "ssd_vit": None,
        "clip": clip,
        "hybrid_lm": found.students["hybrid_lm"],
        "window_lm": found.students["window_lm"],
        "llava": found.students["llava"],
        "sequence": found.students["sequence"],
    }
    assert clip is not None and "needs a teacher that embeds images" in clip
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
    assert found.students.keys() == {"vim", "ssd_vit", "clip", "hybrid_lm", "window_lm", "llava", "sequence"}
    for name in ("hybrid_lm", "window_lm"):
        assert found.students.pop(name) is None  # type: ignore[attr-defined]
    assert all(
        re.search("(needs|made of) a (teacher (of|that embeds) (images|points)|LLaVA)", str(w))
        for w in found.students.values()
    )
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


def save_bert(folder: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    BertForMaskedLM(BertConfig(**shape, vocab_size=60)).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: a/b\n---\n")


def save_gemma2(folder: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    Gemma2ForCausalLM(Gemma2Config(**shape, head_dim=8, vocab_size=60)).save_pretrained(folder)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"])
def test_what_cannot_be_expressed_is_named(command: Callable[..., Any], name: str) -> None:
    done = command("inspect", name)
    model = timm.create_model(name)
    counted = f"{sum(p.numel() for p in model.parameters()):,} parameters, float32"
    assert done.code == 0 and counted in done.out and type(model).__name__ in done.out
    (said,) = [line for line in done.out.splitlines() if line.startswith("refused ")]
    assert "cannot be expressed" in said
    found = transmamba.inspect(name)
    assert found.refused is not None and not found.towers


@pytest.mark.parametrize(
    ("save", "kind", "model"),
    [(save_bert, None, "BertForMaskedLM"), (save_gemma2, "causal_lm", "Gemma2ForCausalLM")],
)
def test_what_no_teacher_reads_is_told_as_far_as_it_is_known(
    save: Callable[[Path], None], kind: str | None, model: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    """A model of a library we know: exit status 0, and 1 where its view was to be checked."""
    save(tmp_path)
    once = sum(tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values())
    found = json.loads(command("inspect", tmp_path, "--json").out)
    assert (found["kind"], found["model"], found["parameters"]) == (kind, model, once)
    assert "cannot be expressed" in found["refused"] and not found["towers"] and found["agrees"] is None
    if save is save_bert:
        assert (found["licence"], found["base_model"]) == ("mit", "a/b")
    for check, code in ((), 0), (("--check",), 1):
        done = command("inspect", tmp_path, *check)
        assert done.code == code and "cannot be expressed" in done.out and f"{once:,} parameters" in done.out
        assert not done.err


def test_a_module_that_no_teacher_reads_is_told_alike() -> None:
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    found = transmamba.inspect(bert)
    assert found.kind is None and found.model == "BertModel" and "BertModel" in str(found.refused)
    assert found.parameters == sum(p.numel() for p in bert.parameters())
    with pytest.raises(UserError, match="no teacher adapter"):
        transmamba.inspect(torch.nn.Linear(2, 2))


def test_a_type_that_its_library_does_not_know_is_a_mistake(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody_s"}))
    done = command("inspect", tmp_path)
    assert done.code == 2 and "nobody_s" in done.err and len(done.err.strip().splitlines()) == 1


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
    with torch.no_grad():
        spoilt = llama()
        spoilt.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        transmamba.inspect(spoilt, check=True)


@pytest.mark.parametrize(
    ("precision", "factor", "code"),
    [
        (torch.float32, 1 + 3e-7, 0),
        (torch.float32, 1 + 1e-3, 1),
        (torch.float16, 1 + 1e-3, 0),
        (torch.float16, 1.5, 1),
        (torch.bfloat16, 1.02, 0),
        (torch.bfloat16, 1.5, 1),
    ],
)
def test_a_check_that_fails_is_exit_status_1(
    precision: torch.dtype,
    factor: float,
    code: int,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What acts beside the weights is a factor of a block's output here; half precision tells less."""
    llama().to(precision).save_pretrained(tmp_path)
    plain = CausalLanguageModel.load

    def load(part: CausalLanguageModel) -> Any:
        model: Any = plain(part)
        model.model.layers[3].register_forward_hook(lambda module, given, made: made * factor)
        return model

    monkeypatch.setattr(CausalLanguageModel, "load", load)
    done = command("inspect", tmp_path, "--check", "--json")
    assert done.code == code, done.err
    found = json.loads(done.out)
    assert found["agrees"] is (code == 0) and found["precision"] == str(precision).removeprefix("torch.")
    if code:
        (line,) = done.err.strip().splitlines()
        assert str(tmp_path) in line and f"{found['most']:g} is the most" in line
    else:
        assert not done.err


def test_what_has_no_view_cannot_be_checked(command: Callable[..., Any]) -> None:
    done = command("inspect", "swin_tiny_patch4_window7_224", "--check")
    assert done.code == 1 and "cannot be expressed" in done.out


def save_gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=60)).save_pretrained(folder)


def save_tied_llama(folder: Path) -> None:
    llama(tie_word_embeddings=True).save_pretrained(folder)


@pytest.mark.parametrize("save", [save_gpt2, save_tied_llama])
def test_a_tied_head_is_counted_once(
    save: Callable[[Path], None], command: Callable[..., Any], tmp_path: Path
) -> None:
    """From the configuration as from the weights; the files hold it once."""
    save(tmp_path)
    once = sum(tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values())
    for check in (False, True):
        found = transmamba.inspect(tmp_path, check=check)
        assert found.parameters == once and found.towers["decoder"]["head"]["tied"]
    assert not command("inspect", tmp_path).err  # nor what transformers thinks of its numbers


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_transformers_says_nothing_beside(
    check: list[str], command: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither what it thinks of a configuration's numbers, nor how far it is where nobody looks."""
    from transformers.utils.logging import warning_once

    save_gpt2(tmp_path)  # whose end of text is beyond its vocabulary
    said = logging.getLogger("transformers")
    said.addHandler(caplog.handler)  # what it writes itself goes to the stderr of when it was imported
    warning_once.cache_clear()  # saving it has told
    caplog.clear()
    try:
        assert not command("inspect", tmp_path, *check).err
    finally:
        said.removeHandler(caplog.handler)
    assert not caplog.records


def test_a_gguf_is_read_without_a_bar(command: Callable[..., Any], tmp_path: Path) -> None:
    """tqdm's own, which transformers does not switch off with its others."""
    save_gguf(tmp_path / "m.gguf")
    done = command("inspect", tmp_path / "m.gguf", "--check")
    assert done.code == 0 and not done.err, done.err
    assert "2,608 parameters" in done.out


def test_an_empty_tokenizer_is_none(tmp_path: Path) -> None:
    """transformers makes one out of a config.json alone."""
    from transformers import AutoTokenizer

    save_gpt2(tmp_path)
    assert transmamba.inspect(tmp_path).reads["tokenizer"] is None
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert transmamba.inspect(tmp_path).reads["tokenizer"]["kind"].startswith("GPT2Tokenizer")


def test_a_file_of_weights_says_its_classes_without_a_check(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    found = transmamba.inspect(tmp_path / "w.pth", architecture="vit_tiny_patch16_224")
    assert found.towers["image"]["head"]["classes"] == 7
    assert found.parameters == sum(p.numel() for p in model.parameters())
    done = command("inspect", tmp_path / "w.pth", "--architecture", "vit_small_patch16_224")
    assert done.code == 2 and "does not fit vit_small_patch16_224" in done.err


def test_open_clip_s_tag_is_read_without_weights(command: Callable[..., Any]) -> None:
    """OpenAI's weights want another activation than the name alone says; an unknown tag is a mistake."""
    of = {
        name: transmamba.inspect(name).towers["image"]["sublayers"][0]["of"][1]["activation"]
        for name in ("ViT-B-32/openai", "ViT-B-32/laion2b_s34b_b79k")
    }
    assert of == {"ViT-B-32/openai": "QuickGELU", "ViT-B-32/laion2b_s34b_b79k": "GELU"}
    done = command("inspect", "ViT-B-32/laion2b_s34b_b79")
    assert done.code == 2 and "did you mean 'laion2b_s34b_b79k'" in done.err


def test_files_that_say_more_than_they_are_asked_for(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    done = command("inspect", tmp_path / "m.gguf", "--architecture", "vit_tiny_patch16_224")
    assert done.code == 2 and "its own architecture" in done.err
    llama().save_pretrained(tmp_path / "m")
    done = command("inspect", tmp_path / "m" / "model.safetensors")
    assert done.code == 2 and f"write its folder, '{tmp_path / 'm'}'" in done.err
