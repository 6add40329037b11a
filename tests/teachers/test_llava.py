"""LLaVA as a teacher: an image's tokens where the text has places for them, stream by stream as the model has
them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from transmamba import UserError, adapt_teacher, convert, inspect, load_teacher
from transmamba.core.output import Capture
from transmamba.teachers.check import differences, random_inputs
from transmamba.teachers.llava import Llava
from transmamba.views.folding import fold
from transmamba.views.sublayers import Norm

PLACE, WORDS, PATCHES = 90, 97, 16
VISION: dict[str, Any] = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=16,
    patch_size=4,
)
DECODER: dict[str, Any] = dict(
    vocab_size=WORDS,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    tie_word_embeddings=False,
)
# name -> vision, decoder, what else the config says
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LLaVA 1.5 (CLIP, Llama)": ("CLIP", "Llama", {}),
    "LLaVA, all tokens of the last layer": (
        "CLIP",
        "Mistral",
        dict(vision_feature_layer=-1, vision_feature_select_strategy="full"),
    ),
    "LLaVA, first layer": ("CLIP", "Llama", dict(vision_feature_layer=1)),
    "LLaVA, one layer in a list": ("CLIP", "Llama", dict(vision_feature_layer=[1])),
    "LLaVA (SigLIP, Qwen2)": ("Siglip", "Qwen2", dict(vision_feature_select_strategy="full")),
    "LLaVA, no bias": ("CLIP", "Qwen3", dict(multimodal_projector_bias=False)),
}


def make(name: str) -> Any:
    import transformers

    vision, decoder, more = MODELS[name]
    config = transformers.LlavaConfig(
        vision_config=getattr(transformers, f"{vision}VisionConfig")(**VISION),
        text_config=getattr(transformers, f"{decoder}Config")(
            **DECODER, **({"head_dim": 8} if decoder == "Qwen3" else {})
        ),
        image_token_index=PLACE,
        **more,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def tokens_of(name: str) -> int:
    vision, _, more = MODELS[name]
    return PATCHES + (vision == "CLIP" and more.get("vision_feature_select_strategy") == "full")


def picture(seed: int) -> Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def words(count: int, seed: int) -> Tensor:
    return torch.randint(3, PLACE, (count,), generator=torch.Generator().manual_seed(seed))


def near(made: Tensor, wanted: Tensor) -> None:
    assert made.shape == wanted.shape
    assert (made - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_every_stream_and_the_logits_are_the_model_s(name: str) -> None:
    model = make(name)
    teacher = adapt_teacher(model)
    found = differences(teacher, Llava.original(model))
    assert {"logits", "stream.image.0", "stream.decoder.1"} <= found.keys()
    assert max(found.values()) <= 1e-5, found
    inputs = random_inputs(teacher.view, teacher.preprocessing, torch.float32)
    with torch.no_grad():
        wanted = model(input_ids=inputs["text"], pixel_values=inputs["image"]).logits
        blind = model(input_ids=inputs["text"], pixel_values=0 * inputs["image"]).logits
    near(teacher(inputs).logits(), wanted)
    assert not torch.allclose(wanted, blind, atol=0.01), "the picture counts"


@pytest.mark.parametrize("name", MODELS)
def test_rows_with_none_one_and_two_pictures_are_the_rows_alone(name: str) -> None:
    model, count = make(name), tokens_of(name)
    teacher = adapt_teacher(model)
    hole = torch.full((count,), PLACE)
    rows = [
        torch.cat([words(2, 1), hole, words(5, 2)]),
        words(6, 3),
        torch.cat([hole, words(3, 4), hole, words(2, 5)]),
    ]
    pictures = [[picture(1)], [], [picture(2), picture(3)]]
    longest = max(map(len, rows))
    text, mask = torch.zeros(3, longest, dtype=torch.int64), torch.zeros(3, longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        text[i, longest - len(row) :], mask[i, longest - len(row) :] = row, True
    images = torch.cat([each for of in pictures for each in of])
    made = teacher({"text": text, "text_mask": mask, "image": images}).logits()
    for i, (row, of) in enumerate(zip(rows, pictures, strict=True)):
        with torch.no_grad():
            seen = {"pixel_values": torch.cat(of)} if of else {}
            wanted = model(input_ids=row[None], **seen).logits[0]
        near(made[i][mask[i]], wanted)


@pytest.mark.parametrize("name", MODELS)
def test_folded_it_is_the_same_and_neither_tower_has_norms_with_weights(name: str) -> None:
    """The image's stream is read as it is, so it is no other after folding, its mean included."""
    teacher = adapt_teacher(make(name))
    folded = teacher.fold()
    inputs = random_inputs(teacher.view, teacher.preprocessing, torch.float32)
    near(folded(inputs).logits(), teacher(inputs).logits())
    capture = {"image": Capture(hidden=frozenset([1]))}
    before, after = (each.view.run(inputs, capture).streams["image"].hidden[1] for each in (teacher, folded))
    near(after, before)
    for tower in folded.view.towers.values():
        norms = [sublayer.norm for sublayer in tower.sublayers]
        assert norms and all(norm.weight is None and norm.bias is None for norm in norms)
    assert not any(sublayer.norm.rms for sublayer in folded.view.towers["image"].sublayers)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("read", [inspect, load_teacher])
def test_a_part_that_its_config_says_nothing_of_is_one_line(part: str, read: Any, tmp_path: Path) -> None:
    """transformers would make a Llama of 7 billion numbers of it."""
    make("LLaVA 1.5 (CLIP, Llama)").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in (None, {}, "absent"):
        changed = {name: value for name, value in config.items() if name != part}
        changed |= {} if change == "absent" else {part: change}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=rf"{part} is (null|\{{\}})") as error:
            read(tmp_path)
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_norm_before_the_connector_is_folded_into_it() -> None:
    view = adapt_teacher(make("LLaVA 1.5 (CLIP, Llama)")).view
    generator = torch.Generator().manual_seed(0)
    norm = Norm(*torch.randn(2, 24, generator=generator), eps=1e-5)
    view = replace(view, towers={**view.towers, "image": replace(view.towers["image"], norm=norm)})
    text = torch.cat([words(2, 1), torch.full((PATCHES,), PLACE)])[None]
    before, after = (each.run({"text": text, "image": picture(1)}).logits for each in (view, fold(view)))
    assert before is not None and after is not None
    near(after(), before())
    assert all(sublayer.norm.rms for sublayer in fold(view).towers["image"].sublayers)


@pytest.mark.parametrize("name", ["LLaVA 1.5 (CLIP, Llama)", "LLaVA (SigLIP, Qwen2)"])
def test_saved_and_inspected_it_is_the_same(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    inputs = random_inputs(teacher.view, teacher.preprocessing, torch.float32)
    near(teacher(inputs).logits(), adapt_teacher(model)(inputs).logits())
    found = inspect(tmp_path)
    assert found.kind == "llava" and found.towers["image"]["blocks"] < 4
    assert found.towers["decoder"]["embedding"]["place"] == PLACE
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_no_image_student_is_made_of_it_and_other_towers_are_refused(tmp_path: Path) -> None:
    from transformers import LlavaConfig, PixtralVisionConfig

    model = make("LLaVA 1.5 (CLIP, Llama)")
    for name in ("vim", "ssd_vit"):
        with pytest.raises(UserError, match="read by a decoder"):
            convert(model, name)
    tower = PixtralVisionConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2
    )
    LlavaConfig(vision_config=tower).save_pretrained(tmp_path)
    assert "model_type=pixtral" in str(inspect(tmp_path).refused)


def test_a_stock_timm_tower_is_refused_by_name_for_transformers_does_not_run_it(tmp_path: Path) -> None:
    """Its maps (P, D, H, W) go to a connector that reads (P, N, D)."""
    import transformers

    tower = transformers.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", do_pooling=False, hidden_size=192, num_labels=0,
        model_args=dict(img_size=32, depth=2),
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=tower,
        text_config=transformers.LlamaConfig(**DECODER),
        image_token_index=PLACE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model: Any = transformers.LlavaForConditionalGeneration(config).eval()
    text = torch.cat([words(2, 1), torch.full((4,), PLACE)])[None]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(input_ids=text, pixel_values=torch.randn(1, 3, 32, 32))
    with pytest.raises(UserError, match=r"image tower \(model_type=timm_wrapper\) cannot be .*known: clip"):
        adapt_teacher(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="timm_wrapper"):
        load_teacher(tmp_path)


def test_places_and_pictures_that_disagree_are_told() -> None:
    teacher = adapt_teacher(make("LLaVA 1.5 (CLIP, Llama)"))
    text = torch.cat([words(2, 1), torch.full((PATCHES - 1,), PLACE)])[None]
    with pytest.raises(ValueError, match=f"15 tokens {PLACE}.*16"):
        teacher({"text": text, "image": picture(1)})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (dict(vision_feature_layer=[-2, -1]), "several layers"),
        (dict(vision_feature_layer=-9), "the tower has 3 blocks"),
        (dict(vision_feature_select_strategy="default"), "which is a patch here"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(
    more: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = "Siglip" if "vision_feature_select_strategy" in more else "CLIP"
    monkeypatch.setitem(MODELS, "odd", (vision, "Llama", more))
    with pytest.raises(UserError, match=said) as error:
        adapt_teacher(make("odd"))
    assert "\n" not in str(error.value)
