"""open_clip builds our text tower from a folder, whichever of both is imported first; else it is loud."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh_process
import open_clip
import pytest
import torch

from transmamba.ecosystems import hooks
from transmamba.ecosystems import open_clip as ecosystem
from transmamba.ecosystems.origin import Origin
from transmamba.errors import UserError
from transmamba.students.text_mamba import TextMamba, TextShape, hook

SHAPE = TextShape(
    context_length=12,
    vocab_size=49408,
    width=8,
    heads=2,
    layers=2,
    embed_dim=6,
    mlp_width=10,
    act="quick_gelu",
)
VISION: dict[str, Any] = dict(layers=1, width=16, head_width=8, patch_size=4, image_size=8)
CFG: dict[str, Any] = dict(embed_dim=6, vision_cfg=VISION, text_cfg=SHAPE.text_cfg(), custom_text=True)

LOADS = """
model, _, transform = open_clip.create_model_and_transforms("local-dir:" + sys.argv[1])
tokens = open_clip.get_tokenizer("local-dir:" + sys.argv[1])(["a cat", "two dogs and a bird"])
assert tokens.shape == (2, 12), tokens.shape
torch.save((tokens, model.eval().encode_text(tokens)), sys.argv[2])
"""
PROGRAMS = {
    "transmamba, then open_clip": "import sys, torch, transmamba, open_clip" + LOADS,
    # and before that, whoever does not know of us hears of it
    "open_clip, then transmamba": """
import sys, torch, open_clip
try:
    open_clip.create_model("local-dir:" + sys.argv[1])
except TypeError as error:
    assert "transmamba" in str(error), error
else:
    sys.exit("it was built")
import transmamba
"""
    + LOADS,
}


def made(randomise: Callable[..., None], **cfg: Any) -> Any:
    model = open_clip.CustomTextCLIP(**{**{k: v for k, v in CFG.items() if k != "custom_text"}, **cfg})
    randomise(model)
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path, randomise: Callable[..., None]) -> Path:
    model = made(randomise)
    ecosystem.say_made_from(model, CFG, Origin())
    ecosystem.save(model, tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.parametrize("order", PROGRAMS)
def test_a_folder_loads_to_the_last_bit(
    order: str, saved: Path, tmp_path: Path, randomise: Callable[..., None]
) -> None:
    done = fresh_process.run(PROGRAMS[order], saved, tmp_path / "there.pt")
    assert done.returncode == 0, done.stderr[-2000:]
    tokens, vectors = torch.load(tmp_path / "there.pt", weights_only=True)
    wanted = made(randomise).encode_text(tokens)
    assert wanted.std() > 0.01 and torch.equal(vectors, wanted)


def test_registering_again_does_nothing() -> None:
    before = open_clip.model._build_text_tower, open_clip.model.CLIPTextCfg
    hook.register()
    assert (open_clip.model._build_text_tower, open_clip.model.CLIPTextCfg) == before
    assert open_clip.CLIPTextCfg is open_clip.model.CLIPTextCfg
    assert [field.name for field in dataclasses.fields(open_clip.CLIPTextCfg)].count("transmamba") == 1


@pytest.mark.parametrize("theirs", [None, lambda cfg: None])
def test_another_version_of_open_clip_is_named(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip.model, "_build_text_tower", theirs)
    monkeypatch.delitem(sys.modules, hook.__name__)
    with pytest.warns(UserWarning, match=rf"open_clip {open_clip.__version__} cannot build text towers"):
        hooks.install()


def test_open_clip_s_own_towers_are_as_before() -> None:
    text = dict(layers=1, width=16, heads=2, context_length=5, vocab_size=120)
    for given in (text, open_clip.CLIPTextCfg(**text)):
        model = open_clip.CustomTextCLIP(6, VISION, given)
        assert type(model.text) is open_clip.transformer.TextTransformer
    whole = open_clip.CLIP(6, VISION, text, quick_gelu=True, cast_dtype=torch.bfloat16)
    block = whole.transformer.resblocks[0]
    assert type(block.mlp.gelu).__name__ == "QuickGELU" and type(block.ln_1).__name__ == "LayerNormFp32"


def test_a_field_that_is_not_read_is_refused() -> None:
    with pytest.raises(UserError, match="text_cfg has eos_id, pool_type, which a text tower of transmamba"):
        open_clip.CustomTextCLIP(6, VISION, {**SHAPE.text_cfg(), "pool_type": "eos", "eos_id": 5})
    # its class that takes a text tower apart finds none of its parts
    with pytest.raises(AttributeError, match="'TextMamba' object has no attribute 'transformer'"):
        open_clip.CLIP(6, VISION, SHAPE.text_cfg())


def test_all_that_open_clip_asks_of_a_text_tower(randomise: Callable[..., None]) -> None:
    model, text = made(randomise), torch.tensor([[5, 6, 49407] + [0] * 9, [7, 49407] + [0] * 10])
    assert isinstance(model.text, TextMamba) and (model.context_length, model.vocab_size) == (12, 49408)
    found = model.forward_intermediates(text=text, text_indices=1, normalize_intermediates=True)
    torch.testing.assert_close(found["text_features"], model.encode_text(text, normalize=True))
    (last,) = found["text_intermediates"]
    assert torch.equal(model.text.text_projection(last[[0, 1], [2, 1]]), model.encode_text(text))
    both = model.forward_intermediates(text=text, text_indices=None, intermediates_only=True)
    assert len(both["text_intermediates"]) == 2 and "text_features" not in both
    assert {"text.positional_embedding", "text.blocks.1.attn.A_log"} <= model.no_weight_decay()
    model.set_grad_checkpointing(True)
    assert model.text.grad_checkpointing
    model.lock_text_tower(unlocked_layers=1)
    free = {name for name, p in model.text.named_parameters() if p.requires_grad}
    assert free == {"text_projection.weight"}


@pytest.mark.parametrize("precision", ["fp16", "bf16", "pure_fp16", "pure_bf16"])
def test_half_precisions(precision: str, saved: Path, randomise: Callable[..., None]) -> None:
    half = open_clip.create_model(f"local-dir:{saved}", precision=precision).eval()
    text = torch.tensor([[5, 6, 49407] + [0] * 9])
    wanted, found = made(randomise).encode_text(text, normalize=True), half.encode_text(text, normalize=True)
    assert found.dtype == (torch.float16 if "fp16" in precision else torch.bfloat16)
    assert (found - wanted).norm() < 0.05


def test_a_shorter_context_is_made_as_told(saved: Path) -> None:
    model = open_clip.create_model(f"local-dir:{saved}", force_context_length=7)
    assert model.text.positional_embedding.shape == (7, 8) and model.context_length == 7
