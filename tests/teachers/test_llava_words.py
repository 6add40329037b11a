"""How a LLaVA with a tokenizer beside it reads pictures and texts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from small_llava import IMAGE, SIDE, llava_folder

from transmamba import UserError, inspect, load_teacher
from transmamba.core.preprocessing import PicturesAndText, Preprocessing, of_pictures
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
