"""The student `hf_llava`: its parts do as they did before, and transformers alone loads what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import tiny_clip
import torch
from llavas import make, together
from PIL import Image
from small_language import tokenizer_folder
from torch import Tensor, nn

from transmamba.config.registry import TEACHERS
from transmamba.core.output import Output
from transmamba.core.preprocessing import PicturesAndText
from transmamba.core.tower import StudentSpec
from transmamba.ecosystems.find import card_of, load_model, preprocessing_of, save_model
from transmamba.ecosystems.generation import left_padded
from transmamba.errors import UserError, WrongValues
from transmamba.students.hf_llava.model import LlavaModel
from transmamba.students.hf_llava.names import HuggingFaceLlava
from transmamba.subcloning.subclone import SubcloneConfig, subclone
from transmamba.teachers.load import adapt_teacher, load_teacher
from transmamba.teachers.open_clip import OpenClip

VISION = dict(
    image_size=16,
    patch_size=4,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose words do not have <image>."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tokenizer_folder(tmp_path_factory.mktemp("decoder"), words=300)
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    ends: dict[str, Any] = dict(eos_token_id=2, bos_token_id=1, tie_word_embeddings=False)
    config = LlamaConfig(**sizes, **ends, num_key_value_heads=2, max_position_embeddings=96)
    made: Any = LlamaForCausalLM(config)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_model(tiny_clip.made(image=dict(layers=3)), folder)
    return folder


@pytest.fixture(scope="module")
def llava(decoder: Path, clip: Path) -> LlavaModel:
    return composed(tower=auto(clip), decoder=str(decoder))


def auto(model: Path) -> Any:
    """As a recipe names what has a tower."""
    return TEACHERS["auto"](model=str(model))


def composed(**keys: Any) -> LlavaModel:
    torch.manual_seed(1)
    made = HuggingFaceLlava(**keys).build(StudentSpec())
    assert isinstance(made, LlavaModel)
    return made.eval()


def logits(output: Output) -> Tensor:
    assert output.logits is not None
    return output.logits()


def seen(model: LlavaModel, pictures: Tensor) -> Tensor:
    """What its connector reads, by transformers' own code."""
    taken: list[Tensor] = []
    projector = model.model.model.multi_modal_projector
    handle = projector.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    with torch.no_grad():
        model.model.model.get_image_features(
            pixel_values=pictures,
            vision_feature_layer=model.config.vision_feature_layer,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        )
    handle.remove()
    return taken[0]


def test_the_tower_s_weights_are_read_once(
    decoder: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a recipe asks: how it reads, then for the student."""
    loads: list[str] = []
    plain = OpenClip.load
    monkeypatch.setattr(OpenClip, "load", lambda part: loads.append(part.model) or plain(part))  # type: ignore[func-returns-value]
    for tower in (auto(clip), OpenClip(model=str(clip))):
        loads.clear()
        part = HuggingFaceLlava(tower=tower, decoder=str(decoder))
        told = part.preprocessing()
        assert loads == []
        made: Any = part.build(StudentSpec())
        assert loads == [str(clip)] and told == made.reads


def test_the_tower_is_the_clips_but_for_its_last_block(llava: LlavaModel, clip: Path) -> None:
    torch.manual_seed(2)
    pictures, theirs = torch.randn(2, 3, 16, 16), load_model(clip)
    streams: list[Tensor] = []
    blocks: Any = theirs.visual.transformer.resblocks  # type: ignore[union-attr]
    blocks[-2].register_forward_hook(lambda _module, _given, made: streams.append(made))
    with torch.no_grad():
        theirs.encode_image(pictures)  # type: ignore[operator]
    assert torch.allclose(seen(llava, pictures), streams[0][:, 1:], atol=1e-5)


def test_a_tower_without_a_class_token_becomes_a_siglip(decoder: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs: Any = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        depth=3,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        embed_dim=24,
        num_heads=2,
    )
    save_model(theirs.eval(), tmp_path / "tower")
    made = composed(tower=auto(tmp_path / "tower"), decoder=str(decoder))
    pictures = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        stream = theirs.blocks[:2](theirs.norm_pre(theirs._pos_embed(theirs.patch_embed(pictures))))
    assert made.config.vision_config.model_type == "siglip_vision_model"
    assert torch.allclose(seen(made, pictures), stream, atol=1e-5)


@pytest.mark.parametrize(
    "kwargs, said", [({}, "a class token, but no norm"), ({"init_values": 1.0}, "scale")]
)
def test_a_tower_that_no_class_holds_is_refused(
    decoder: Path, tmp_path: Path, kwargs: dict[str, Any], said: str
) -> None:
    more: dict[str, Any] = {**kwargs, "pre_norm": True} if kwargs else {}
    made = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2, num_classes=0, **more
    )
    save_model(made.eval(), tmp_path / "tower")
    with pytest.raises(UserError, match=said):
        composed(tower=auto(tmp_path / "tower"), decoder=str(decoder))


def test_texts_alone_are_the_decoders_own(llava: LlavaModel, decoder: Path) -> None:
    from transformers import AutoModelForCausalLM

    own: Any = AutoModelForCausalLM.from_pretrained(decoder)
    torch.manual_seed(4)
    text, mask = torch.randint(3, 300, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    mask[1, :4] = False
    with torch.no_grad():
        found = logits(llava.run({"text": text, "text_mask": mask}))
        theirs = own(text, attention_mask=mask.long(), position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits
    assert torch.allclose(found[mask][:, :300], theirs[mask], atol=1e-5)
    assert llava.vocabulary == 320, "of <image>, and room up to a multiple of 64"


def test_what_is_saved_is_transformers_own(llava: LlavaModel, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    llava.save_pretrained(tmp_path)
    processor: Any = AutoProcessor.from_pretrained(tmp_path)
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    drawn = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    asked = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    same = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": "<image>\nWhat is it?"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == same and "What is it?" in asked
    words = ["<image> a", asked]
    given = processor(images=[Image.fromarray(drawn)] * 2, text=words, return_tensors="pt", padding=True)
    assert not given["attention_mask"][0, 0], "padding lies before a prompt"
    inputs = {
        "text": given["input_ids"],
        "text_mask": given["attention_mask"].bool(),
        "image": given["pixel_values"],
    }
    with torch.no_grad():
        position = (given["attention_mask"].cumsum(1) - 1).clamp_min(0)
        theirs, mine = model(**given, position_ids=position).logits, logits(llava.run(inputs))
        again = load_model(tmp_path)
        assert isinstance(again, LlavaModel)
        assert torch.equal(logits(again.run(inputs)), mine)
    assert torch.allclose(theirs, mine, atol=1e-6)
    reads = preprocessing_of(again)
    assert reads == llava.reads and isinstance(reads, PicturesAndText) and reads.places == 16
    assert load_teacher(tmp_path).preprocessing == reads, "and it is a teacher"


def test_each_parameter_is_of_one_group_and_reached(llava: LlavaModel) -> None:
    groups = llava.groups()
    assert groups.keys() == {*HuggingFaceLlava.group_names}
    for name, _ in llava.named_parameters():
        assert sum(holds(name) for holds in groups.values()) == 1, name
    reads: Any = llava.reads
    text = torch.tensor([[reads.image_token] * reads.places + [5, 6]])
    made = logits(llava.run({"text": text, "image": torch.randn(1, 3, 16, 16)}))
    made[0, -1].square().sum().backward()
    unread = [name for name, each in llava.named_parameters() if each.grad is None]
    llava.zero_grad(set_to_none=True)
    assert unread == [name for name in unread if "post_layernorm" in name]


@pytest.mark.parametrize(
    "keys, said",
    [
        ({}, "a decoder with one of tower and vision"),
        ({"decoder": "a"}, "one of tower and vision"),
        ({"decoder": "a", "tower": "b", "vision": VISION}, "one of tower and vision"),
        ({"model": "a", "tower": "b"}, "leave out beside model"),
        ({"decoder": "a", "vision": {**VISION, "depth": 2}}, "vision has no depth"),
        ({"decoder": "a", "vision": {"image_size": 16}}, "vision lacks patch_size"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongValues, match=said):
        HuggingFaceLlava(**keys)


def test_other_kinds_are_refused_by_name(decoder: Path, clip: Path) -> None:
    with pytest.raises(UserError, match="takes a LLaVA"):
        composed(model=str(decoder))
    with pytest.raises(UserError, match="no causal language model"):
        composed(vision=VISION, decoder=str(clip))
    with pytest.raises(UserError, match="reads no pictures"):
        composed(tower=auto(decoder), decoder=str(decoder))


def test_units_are_called_and_never_entered(llava: LlavaModel) -> None:
    units = llava.units()
    assert len(units) == 2 + 2 and all(isinstance(unit, nn.Module) for unit in units)


def test_it_writes_as_step_by_step_and_each_row_as_alone(llava: LlavaModel) -> None:
    reads: Any = llava.reads
    torch.manual_seed(5)
    rows = [
        [reads.image_token] * reads.places + [7, 8, 9],
        [11, 12],
        [13, *[reads.image_token] * reads.places * 2],
    ]
    pictures = torch.randn(3, 3, 16, 16)
    given = {**left_padded(rows), "image": pictures}
    written = llava.generate(given, 4).tolist()
    for row, ids, seen in zip(written, rows, (pictures[:1], None, pictures[1:]), strict=True):
        words = list(ids)
        for _ in range(4):
            text = torch.tensor([words])
            more = {} if seen is None else {"image": seen}
            with torch.no_grad():
                words.append(int(logits(llava.run({"text": text, **more}))[0, -1].argmax()))
            if words[-1] == 2:
                break
        new = words[len(ids) :]
        assert row[: len(new)] == new and set(row[len(new) :]) <= {2}


def test_a_teacher_s_weights_have_no_place_in_it() -> None:
    model = make()
    with pytest.raises(UserError, match="no tower that takes a teacher's weights; write init: null"):
        subclone(LlavaModel(model, None, None), adapt_teacher(model), SubcloneConfig())  # type: ignore[arg-type]


def test_without_pictures_the_same_has_gradients_and_its_logits_are_what_they_were() -> None:
    """As on a process whose rows have none, while another's have some."""
    student = LlavaModel(make(), None, None)  # type: ignore[arg-type]
    text = {"text": torch.tensor([[3, 4, 5, 6]])}
    wanted = student.run(text).logits
    found = student.train().run(text).logits
    assert wanted is not None and found is not None and torch.equal(found(), wanted())
    found().sum().backward()
    reached = {name for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    seen = together(left=False)
    made = student.run({name: seen[name] for name in ("text", "text_mask", "image")}).logits
    assert made is not None
    made().sum().backward()
    assert reached == {name for name, p in student.named_parameters() if p.grad is not None}
    assert any("vision_tower" in name for name in reached)


def test_its_card_asks_as_its_tokenizer_can(llava: LlavaModel) -> None:
    assert llava.chats and "apply_chat_template" in card_of(llava).snippet  # type: ignore[union-attr]
    bare = LlavaModel(llava.model, None, llava.reads)
    said = card_of(bare).snippet  # type: ignore[union-attr]
    assert "USER: <image>\\nWhat" in said and "apply_chat_template" not in said
    compile(said, "card", "exec")
