"""How a LLaVA with a tokenizer beside it reads pictures and texts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from asked_items import item
from small_llava import IMAGE, PATCH, SIDE, llava_folder

from transmamba import UserError, inspect, load_teacher
from transmamba.core.preprocessing import PicturesAndText, Preprocessing, of_pictures
from transmamba.core.text import Message
from transmamba.data.questions.asked import Asking, Style
from transmamba.data.questions.batches import Shown
from transmamba.ecosystems.find import save_model
from transmamba.ecosystems.transformers import preprocessing
from transmamba.ecosystems.vision_language import places_of

CASES = {"default": ("CLIP", "default"), "full": ("CLIP", "full"), "SigLIP": ("Siglip", "full")}


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.mark.parametrize(("vision", "strategy"), CASES.values(), ids=CASES)
def test_a_picture_takes_as_many_tokens_as_the_model_s_own_class_needs(
    vision: str, strategy: str, tmp_path: Path
) -> None:
    folder = llava_folder(tmp_path / "teacher", vision=vision, strategy=strategy)
    said = load_teacher(folder).preprocessing
    assert isinstance(said, PicturesAndText)
    assert said.text.encode([IMAGE]) == [[said.image_token]]
    model = loaded(folder)
    pixels = torch.randn(1, *said.input_size)

    def works(count: int) -> bool:
        text = torch.tensor([[5, *[said.image_token] * count, 6]])
        try:
            model(input_ids=text, pixel_values=pixels)
        except ValueError:
            return False
        return True

    assert [count for count in range(1, 8) if works(count)] == [said.places]
    # read from the folder, from a module in hand, and by transformers' side of the house alike
    assert preprocessing(model) == said == pickle.loads(pickle.dumps(said))


def test_its_pictures_are_those_of_its_processor(tmp_path: Path) -> None:
    """transformers' own processor of the folder is asked."""
    import numpy as np
    from PIL import Image
    from transformers import AutoImageProcessor

    folder = llava_folder(tmp_path)
    looks = of_pictures(load_teacher(folder).preprocessing)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    wanted = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(looks.eval_transform()(picture), wanted, atol=1e-6, rtol=0)


# llava-hf's own: pictures first, then what is said
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}"
    "{% endif %}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.mark.parametrize("bos", [False, True])
def test_a_prompt_is_that_of_the_library_s_own_processor(bos: bool, tmp_path: Path) -> None:
    """Tokens and pixels: two pictures, and turns before the question."""
    from PIL import Image
    from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor

    folder = llava_folder(tmp_path, template=LLAVA_TEMPLATE, bos=bos, context=200)
    own = LlavaProcessor(
        image_processor=CLIPImageProcessor.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    pictures = [Image.new("RGB", (SIDE, SIDE), (level, 9, 200)) for level in (10, 90)]
    turns = [("user", "The cat?"), ("assistant", "sat"), ("user", "and one two?")]
    conversation: list[Any] = [
        {"role": role, "content": [{"type": "text", "text": said}]} for role, said in turns
    ]
    conversation[0]["content"] = [{"type": "image"}, {"type": "image"}, *conversation[0]["content"]]
    text = own.apply_chat_template(conversation, add_generation_prompt=True)
    wanted = own(images=pictures, text=text, return_tensors="pt")

    asked = item(turns[2][1], pictures=(1, 2), earlier=tuple(Message(role, said) for role, said in turns[:2]))
    asking = Asking(load_teacher(folder).preprocessing, Style(), 200)
    assert asking.prompt(asked) == wanted.input_ids[0].tolist()
    assert wanted.input_ids[0].tolist()[0] == 1 or not bos, "it begins with its BOS"
    shown = Shown(asking).of([pictures])
    torch.testing.assert_close(shown["image"], wanted.pixel_values, atol=1e-6, rtol=0)


def test_without_a_tokenizer_it_says_how_pictures_look_alone(tmp_path: Path) -> None:
    folder = llava_folder(tmp_path)
    assert isinstance(load_teacher(folder).preprocessing, PicturesAndText)
    for file in folder.glob("*token*"):
        file.unlink()
    assert isinstance(load_teacher(folder).preprocessing, Preprocessing)


def test_inspect_tells_both(tmp_path: Path) -> None:
    folder = llava_folder(tmp_path, strategy="full")
    found = inspect(folder, check=True)
    said = load_teacher(folder).preprocessing
    assert found.agrees and found.reads["pictures"] == {"token": said.image_token, "tokens_each": 5}
    assert found.reads["preprocessing"]["input_size"] == (3, SIDE, SIDE)
    assert found.reads["tokenizer"]["vocabulary"] == said.image_token + 1
    json.dumps(found.as_dict())


def test_saved_with_it_a_model_has_its_processor(tmp_path: Path) -> None:
    said = load_teacher(llava_folder(tmp_path / "teacher")).preprocessing
    save_model(loaded(tmp_path / "teacher"), tmp_path / "other", said)
    assert of_pictures(load_teacher(tmp_path / "other").preprocessing) == said.pictures


def test_a_patch_that_would_be_left_out_is_refused(tmp_path: Path) -> None:
    model = loaded(llava_folder(tmp_path, vision="Siglip", strategy="full"))
    model.config.vision_feature_select_strategy = "default"
    with pytest.raises(UserError, match="write full"):
        places_of(model.config)
    with pytest.raises(UserError, match="0 tokens a picture"):
        PicturesAndText(Preprocessing((3, 4, 4), (0.5,) * 3, (0.5,) * 3), None, 1, 0)  # type: ignore[arg-type]
