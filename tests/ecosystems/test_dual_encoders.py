"""Hugging Face's CLIP and SigLIP: loaded whole, from safetensors, with the pictures that theirs makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from transmamba import inspect, load_teacher
from transmamba.ecosystems import transformers as library
from transmamba.ecosystems.find import load_model, preprocessing_of, save_model
from transmamba.ecosystems.processor import hugging_face_preprocessing
from transmamba.errors import UserError

SHAPE: dict[str, Any] = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
WORDS: dict[str, Any] = dict(
    vocab_size=50, max_position_embeddings=6, bos_token_id=0, pad_token_id=1, eos_token_id=49
)
LOOKS: dict[str, Any] = dict(image_size=16, patch_size=4)
CONFIGS: dict[str, tuple[Any, Any]] = {
    "clip": (CLIPModel, CLIPConfig),
    "siglip": (SiglipModel, SiglipConfig),
}


@pytest.fixture(params=CONFIGS)
def saved(request: Any, tmp_path: Path) -> Path:
    kind, config = CONFIGS[request.param]
    torch.manual_seed(0)
    model = kind(config(text_config={**SHAPE, **WORDS}, vision_config={**SHAPE, **LOOKS}))
    model.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_loaded_whole(saved: Path) -> None:
    model = load_model(saved)
    assert type(model).__name__ in ("CLIPModel", "SiglipModel") and not model.training
    card = library.card(model)
    assert card.pipeline_tag == "zero-shot-image-classification" and "AutoModel" in card.snippet
    looks = preprocessing_of(model)
    assert looks.input_size == (3, 16, 16) and looks.interpolation == "bicubic"
    assert looks.crop_mode == ("center" if type(model).__name__ == "CLIPModel" else "squash")
    save_model(model, saved / "again", looks)
    assert load_teacher(saved / "again").preprocessing == looks


def test_what_is_missing_is_one_line(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    lacking = [name for name in state if "text_model.encoder.layers.0.mlp" in name]
    assert lacking
    kept = {name: tensor for name, tensor in state.items() if name not in lacking}
    save_file(kept, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks text_model\.encoder\.layers\.0\.mlp.* and 1 more") as error:
        load_teacher(saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_tower_that_its_config_says_nothing_of_is_one_line(part: str, saved: Path) -> None:
    """transformers would make the default one without a word; older configurations have it elsewhere."""
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, part: None}))
    for read in (load_teacher, inspect, load_model):
        with pytest.raises(UserError, match=f"{part} is null") as error:
            read(saved)
        assert "\n" not in str(error.value) and str(saved) in str(error.value)
    if config["model_type"] == "clip":
        older = {**config, part: None, f"{part}_dict": config[part]}
        (saved / "config.json").write_text(json.dumps(older))
        assert load_teacher(saved).view.towers["image"].width == 16


def test_pickled_weights_are_refused(saved: Path) -> None:
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no file named model\.safetensors") as error:
        load_teacher(saved)
    assert "\n" not in str(error.value)


def test_neither_is_a_classifier_to_fine_tune(saved: Path) -> None:
    with pytest.raises(UserError, match="cannot be expressed"):
        library.load_hugging_face(str(saved), num_classes=3)


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (16, 16), (200, 41), (15, 32)])
@pytest.mark.parametrize("kind", ["CLIPImageProcessorPil", "SiglipImageProcessorPil"])
def test_pictures_are_those_of_transformers(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    square = {"height": 16, "width": 16}
    given = dict(size={"shortest_edge": 16}, crop_size=square) if "CLIP" in kind else dict(size=square)
    processor = getattr(transformers, kind)(**given)
    processor.save_pretrained(tmp_path)
    config = CONFIGS["clip" if "CLIP" in kind else "siglip"][1](vision_config=LOOKS).vision_config
    width, height = size
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    ours = hugging_face_preprocessing(config, str(tmp_path)).eval_transform()(Image.fromarray(pixels))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_processor_of_patches_is_refused(tmp_path: Path) -> None:
    transformers.Siglip2ImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="Siglip2ImageProcessor; known are"):
        hugging_face_preprocessing(SiglipConfig(vision_config=LOOKS).vision_config, str(tmp_path))
