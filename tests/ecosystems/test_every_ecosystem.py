"""Every library that we know: what it saves it recognises, loads, and describes, and nobody else does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import transmamba
from transmamba.config.registry import STUDENTS
from transmamba.core.card import Card
from transmamba.core.points import PointShape
from transmamba.core.preprocessing import Preprocessing
from transmamba.core.tower import StudentSpec
from transmamba.ecosystems import open_clip
from transmamba.ecosystems.find import (
    ECOSYSTEMS,
    card_of,
    ecosystem_of,
    load_model,
    owner_of,
    preprocessing_of,
    save_model,
)
from transmamba.ecosystems.origin import Origin
from transmamba.ecosystems.sources import read_source
from transmamba.errors import UserError

LOOKS = Preprocessing((3, 8, 8), (0.25,) * 3, (0.125,) * 3, "bilinear", 1.0, "squash")


def of_timm() -> nn.Module:
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    return timm.create_model("vit_tiny_patch16_224", **shape).eval()


def of_transformers() -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=3
    )
    return ViTForImageClassification(config).eval()


def of_open_clip() -> nn.Module:
    from open_clip import CLIP

    torch.manual_seed(0)
    cfg: dict[str, Any] = dict(
        embed_dim=8,
        vision_cfg=dict(layers=1, width=16, head_width=8, patch_size=4, image_size=8),
        text_cfg=dict(layers=1, width=16, heads=2, context_length=5, vocab_size=20),
    )
    model = CLIP(**cfg).eval()
    open_clip.say_made_from(model, cfg, Origin())
    return model


def of_points() -> nn.Module:
    torch.manual_seed(0)
    points = PointShape(width=3, outputs=2, length=7)
    return STUDENTS["sequence"](width=16, heads=2).build(StudentSpec(points=points)).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "transmamba": of_points,
    "timm": of_timm,
    "transformers": of_transformers,
    "open_clip": of_open_clip,
}
TAGS = {"open_clip": "zero-shot-image-classification", "transmamba": "other"}


def inputs_of(library: str) -> Tensor:
    return torch.randn(2, 7, 3) if library == "transmamba" else torch.randn(2, 3, 8, 8)


def looks_of(library: str) -> Any:
    return PointShape(width=3, outputs=2, length=7) if library == "transmamba" else LOOKS


def logits(model: Any, images: Tensor) -> Tensor:
    """Of a model without classes, its embeddings."""
    made = model.encode_image(images) if hasattr(model, "encode_image") else model(images)
    return made if isinstance(made, Tensor) else made.logits


@pytest.mark.parametrize("ecosystem", ECOSYSTEMS, ids=lambda ecosystem: ecosystem.library)
class TestEcosystem:
    def test_saves_what_it_loads(self, ecosystem: Any, tmp_path: Path) -> None:
        model, images = MODELS[ecosystem.library](), inputs_of(ecosystem.library)
        ecosystem.save(model, tmp_path, LOOKS)
        loaded = ecosystem.load(read_source(str(tmp_path)))
        assert not loaded.training and torch.equal(logits(loaded, images), logits(model, images))
        assert ecosystem.preprocessing(loaded) == looks_of(ecosystem.library)
        assert not list(tmp_path.glob("*.bin")), "safetensors alone"

    def test_nobody_else_recognises_its_folder_or_model(self, ecosystem: Any, tmp_path: Path) -> None:
        model = MODELS[ecosystem.library]()
        ecosystem.save(model, tmp_path)
        source = read_source(str(tmp_path))
        for other in ECOSYSTEMS:
            assert other.recognise(source) is (other is ecosystem)
            assert other.holds(model) is (other is ecosystem)
        assert ecosystem_of(source) is ecosystem and owner_of(model) is ecosystem

    def test_knows_facts_for_a_model_card(self, ecosystem: Any, tmp_path: Path) -> None:
        model = MODELS[ecosystem.library]()
        ecosystem.save(model, tmp_path, LOOKS)
        (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\nbase_model: them/theirs\n---\n# x\n")
        card: Card = ecosystem.card(ecosystem.load(read_source(str(tmp_path))))
        assert isinstance(card, Card) and card.library == ecosystem.library
        assert card.pipeline_tag == TAGS.get(ecosystem.library, "image-classification")
        assert (card.licence, card.base_model) == ("cc-by-nc-4.0", "them/theirs")
        compile(card.snippet, "snippet", "exec")
        assert f"import {ecosystem.library}" in card.snippet or f"from {ecosystem.library}" in card.snippet

    def test_find_picks_it(self, ecosystem: Any, tmp_path: Path) -> None:
        model = MODELS[ecosystem.library]()
        save_model(model, tmp_path, LOOKS)
        assert preprocessing_of(load_model(tmp_path)) == looks_of(ecosystem.library)
        assert card_of(model) == ecosystem.card(model)


def test_a_model_of_no_library_is_refused() -> None:
    with pytest.raises(
        UserError, match="Linear is a model of none of timm, transformers, open_clip, transmamba"
    ):
        owner_of(nn.Linear(1, 1))
    assert card_of(nn.Linear(1, 1)) is None


def test_a_student_s_card_imports_us() -> None:
    card = card_of(timm.create_model("vim_micro_patch2_8", depth=1))
    assert (
        card is not None
        and "import transmamba" in card.snippet
        and card.licence is None
        and card.base_model is None
    )
    assert transmamba.__version__
    card = card_of(timm.create_model("vim_micro_patch2_8", depth=1, num_classes=0))
    assert card is not None and card.pipeline_tag == "image-feature-extraction"
