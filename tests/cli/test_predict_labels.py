"""`transmamba predict CLIP ... --labels`: which of some texts a picture is most like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import made

import transmamba
from transmamba.ecosystems.find import save_model

Command = Callable[..., Any]
open_clip = pytest.importorskip("open_clip", reason="needs open_clip")

LABELS = ["a red square", "two dogs", "nothing at all"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, as a run writes it."""
    folder = tmp_path_factory.mktemp("clips")
    save_model(made(quick_gelu=True), folder / "teacher")
    student, _ = transmamba.convert(folder / "teacher", "clip", image={"kind": "ssd_vit"})
    transmamba.save_student(student, folder / "run/student")
    return folder / "run"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def similarities(folder: Path, pictures: Path, templates: list[str], labels: list[str]) -> torch.Tensor:
    """(N, K), by open_clip's own code: its transform, its tokenizer, its scale."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    images = torch.stack([transform(Image.open(path)) for path in sorted(pictures.iterdir())])
    with torch.no_grad():
        image = model.eval().encode_image(images, normalize=True)
        of_each = [
            model.encode_text(tokenizer([each.replace("{c}", label) for each in templates]), normalize=True)
            for label in labels
        ]
        text = torch.stack([vectors.mean(dim=0) / vectors.mean(dim=0).norm() for vectors in of_each])
        return model.logit_scale.exp() * image @ text.T


def probabilities(done: Any, labels: list[str]) -> torch.Tensor:
    assert done.code == 0, done.err
    answers = [{a["class"]: a["probability"] for a in each["classes"]} for each in json.loads(done.out)]
    return torch.tensor([[each[label] for label in labels] for each in answers])


@pytest.mark.parametrize("templates", [["{c}"], ["a photo of a {c}.", "{c}", "the {c}, drawn"]])
def test_probabilities_are_open_clip_s(
    command: Command, clip: Path, pictures: Path, templates: list[str], tmp_path: Path
) -> None:
    words: list[Any] = []
    if len(templates) > 1:
        (tmp_path / "t.txt").write_text("\n".join(templates))
        words = ["--templates", tmp_path / "t.txt"]
    done = command("predict", clip, pictures, "--json", *words, "--labels", *LABELS)
    wanted = similarities(clip / "student", pictures, templates, LABELS).softmax(dim=-1)
    assert torch.allclose(probabilities(done, LABELS), wanted, atol=1e-5)
    (tmp_path / "labels.txt").write_text("\n\n".join(LABELS) + "\n")
    again = command("predict", clip, pictures, "--json", *words, "--labels", tmp_path / "labels.txt")
    assert again.out == done.out
    best = LABELS[int(wanted[0].argmax())]
    line = command("predict", clip, pictures / "0.png", "--top", "1", *words, "--labels", *LABELS).out
    assert line == f"{pictures / '0.png'}: {best} {100 * float(wanted[0].max()):.1f} %\n"


def test_a_picture_on_its_side_is_turned(command: Command, clip: Path, tmp_path: Path) -> None:
    """As readers of captions turn it, by EXIF."""
    rows = np.zeros((12, 16, 3), dtype=np.uint8)
    rows[:4] = (255, 0, 40)
    side = Image.Exif()
    side[0x0112] = 6  # shown after a quarter to the right
    (tmp_path / "p").mkdir()
    Image.fromarray(rows).save(tmp_path / "p/0.png", exif=side)
    Image.fromarray(np.rot90(rows, -1).copy()).save(tmp_path / "p/1.png")
    found = probabilities(command("predict", clip, tmp_path / "p", "--json", "--labels", *LABELS), LABELS)
    assert torch.equal(found[0], found[1])
    Image.fromarray(rows).save(tmp_path / "p/0.png")
    found = probabilities(command("predict", clip, tmp_path / "p", "--json", "--labels", *LABELS), LABELS)
    assert not torch.allclose(found[0], found[1], atol=1e-4)


def test_a_siglip_s_probabilities_are_each_text_s_own(
    command: Command, pictures: Path, tmp_path: Path
) -> None:
    model = made(init_logit_bias=-1.5)
    with torch.no_grad():
        model.logit_bias.fill_(-1.5)
    save_model(model, tmp_path / "siglip")
    done = command("predict", tmp_path / "siglip", pictures, "--json", "--labels", *LABELS)
    wanted = (similarities(tmp_path / "siglip", pictures, ["{c}"], LABELS) - 1.5).sigmoid()
    assert torch.allclose(probabilities(done, LABELS), wanted, atol=1e-5)


def test_a_hugging_face_clip(command: Command, pictures: Path, tmp_path: Path) -> None:
    """Against its own forward pass."""
    from tiny_clip import WORDS, word_tokenizer
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tower = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    text = dict(tower, vocab_size=len(WORDS), max_position_embeddings=6, eos_token_id=0)
    vision = dict(tower, image_size=8, patch_size=4)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    model.save_pretrained(tmp_path / "hf")
    sides = dict(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    processor = CLIPImageProcessor(**sides)
    processor.save_pretrained(tmp_path / "hf")
    word_tokenizer(tmp_path / "hf")
    labels = ["a red square", "two dogs"]
    done = command("predict", tmp_path / "hf", pictures, "--json", "--labels", *labels)
    images = [Image.open(path) for path in sorted(pictures.iterdir())]
    ids = torch.tensor([[WORDS.index(word) for word in label.split()] + [0] for label in ["a red square"]])
    other = torch.tensor([[WORDS.index("two"), WORDS.index("dogs"), 0, 0]])
    with torch.no_grad():
        pixels = processor(images, return_tensors="pt").pixel_values
        wanted = model(pixel_values=pixels, input_ids=torch.cat([ids, other])).logits_per_image
    assert torch.allclose(probabilities(done, labels), wanted.softmax(dim=-1), atol=1e-3)


def test_what_does_not_go_together_is_said(
    command: Command, clip: Path, teacher: Path, pictures: Path, tmp_path: Path
) -> None:
    command("predict", clip, pictures).refuses("has no classes", '--labels "a cat" "a dog"')
    command("predict", teacher, pictures, "--labels", "a", "b").refuses(
        "reads no texts", "leave --labels out"
    )
    command("predict", clip, pictures, "--templates", "t.txt").refuses("--templates goes with --labels")
    command("predict", clip, pictures, "--labels", "a").refuses("labels: 'a'; write two texts or more")
    command("predict", clip, pictures, "--labels", "a", " ").refuses("labels: ' ' is empty")
    command("predict", clip, pictures, "--labels", "a", "b", "a").refuses("labels: 'a' is there twice")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    command("predict", clip, pictures, "--labels", tmp_path / "bad.txt").refuses("no text in UTF-8")
    (tmp_path / "t.txt").write_text("a photo")
    words = ["--templates", tmp_path / "t.txt", "--labels", "a", "b"]
    command("predict", clip, pictures, *words).refuses("must have one {c}")
    command("predict", clip, pictures, "--top", "0", "--labels", "a", "b").refuses("top is 0")


def test_texts_that_are_cut_are_said(command: Command, clip: Path, pictures: Path) -> None:
    done = command("predict", clip, pictures, "--labels", "a cat", " ".join(["word"] * 30))
    assert done.code == 0 and "1 of 2 texts are longer than the model's 12 tokens" in done.err
    assert not command("predict", clip, pictures, "--labels", *LABELS).err


def test_damaged_weights_are_one_line(command: Command, pictures: Path, tmp_path: Path) -> None:
    model = made()
    with torch.no_grad():
        model.visual.proj[0, 0] = torch.nan
    save_model(model, tmp_path / "nan")
    command("predict", tmp_path / "nan", pictures, "--labels", *LABELS).refuses(
        "image embeddings are not finite"
    )
