"""The folder of a LLaVA's student: a checkpoint of transformers with its processor, whole without us where
the tower is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pytest
import torch
from hybrids import WITH_US, WITHOUT_US, with_us
from llavas import made_by, moved, relative
from PIL import Image
from small_llava import IMAGE, llava_folder
from torch import Tensor

from transmamba import UserError, convert, inspect, load_student, load_teacher, save_student
from transmamba.core.preprocessing import PicturesAndText
from transmamba.ecosystems.find import card_of, preprocessing_of
from transmamba.students.llava.model import LlavaStudent

ALONE = """
import sys
import torch
{first}
from transformers import AutoModelForImageTextToText, AutoProcessor
for folder in sys.argv[2:]:
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**torch.load(sys.argv[1]), use_cache=False).logits
    torch.save(logits, folder + "/logits.pt")
    assert AutoProcessor.from_pretrained(folder).tokenizer.padding_side == "left"
{last}
"""
HYBRID: dict[str, Any] = {"kind": "hybrid"}
KINDS: dict[str, dict[str, Any]] = {
    "kept": {},
    "kept, hybrid": dict(decoder={**HYBRID, "attention_layers": [1]}),
    "kept, pure": dict(decoder=HYBRID),
    "vim, pure": dict(image={"kind": "vim"}, decoder=HYBRID),
    "ssd_vit": dict(image={"kind": "ssd_vit"}),
    "kept SigLIP, Qwen2": {},
    "kept SigLIP, Qwen2, hybrid": dict(decoder={**HYBRID, "attention_layers": [1]}),
    "kept SigLIP, Qwen2, pure": dict(decoder=HYBRID),
}
TEXTS = (f"a {IMAGE} cat sat", "no picture", f"{IMAGE} one {IMAGE} two on")
Saved = dict[str, tuple[LlavaStudent, Path]]


def pictures() -> list[list[Image.Image]]:
    """Of each of `TEXTS`, none of the size that is read."""
    drawn = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    first, second, third = map(Image.fromarray, drawn)
    return [[first], [], [second, third]]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """By whether it is a SigLIP over a Qwen2."""
    folder = tmp_path_factory.mktemp("teachers")
    other: Any = dict(vision="Siglip", language="Qwen2", strategy="full")
    return {False: llava_folder(folder / "plain"), True: llava_folder(folder / "other", **other)}


@pytest.fixture(scope="module")
def saved(teachers: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> Saved:
    found = {}
    for kind, options in KINDS.items():
        student, folder = (
            convert(load_teacher(teachers["SigLIP" in kind]), "llava", **options)[0],
            tmp_path_factory.mktemp("student"),
        )
        save_student(moved(student), folder)  # type: ignore[arg-type]
        found[kind] = student, folder
    return found  # type: ignore[return-value]


def processed(folder: Path, texts: Any = TEXTS, images: Any = None) -> dict[str, Tensor]:
    """What the folder's own processor makes."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    shown = pictures() if images is None else images
    made = processor(
        text=list(texts), images=shown if any(shown) else None, return_tensors="pt", padding=True
    )
    return dict(made)


def inputs_of(made: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same by our names."""
    found = {"text": made["input_ids"], "text_mask": made["attention_mask"].bool()}
    return found | ({"image": made["pixel_values"]} if "pixel_values" in made else {})


def test_a_fresh_process_loads_the_same_model(saved: Saved, tmp_path: Path) -> None:
    made = processed(saved["kept"][1])
    torch.save(made, tmp_path / "made.pt")
    for parts, kinds in (
        (WITH_US if with_us() else WITHOUT_US, [kind for kind in KINDS if kind.startswith("kept")]),
        (WITH_US, [kind for kind in KINDS if not kind.startswith("kept")]),
    ):
        folders = [saved[kind][1] for kind in kinds]
        done = fresh_process.run(ALONE.format(**parts), tmp_path / "made.pt", *folders)
        assert done.returncode == 0, done.stderr[-2000:]
    mask = made["attention_mask"].bool()
    for student, folder in saved.values():
        wanted = made_by(student, inputs_of(made))
        assert relative(torch.load(folder / "logits.pt")[mask], wanted[mask]) < 1e-5
        (folder / "logits.pt").unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_as_ours(saved: Saved, kind: str, teachers: dict[bool, Path], tmp_path: Path) -> None:
    student, folder = saved[kind]
    again = load_student(folder)
    assert isinstance(again, LlavaStudent) and not again.training
    mine, theirs = dict(student.named_parameters()), dict(again.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    save_student(again, tmp_path)
    for file in sorted(folder.iterdir()):
        assert _said(tmp_path / file.name) == _said(file), file.name
    said = preprocessing_of(again)
    assert (
        isinstance(said, PicturesAndText) and said == load_teacher(teachers["SigLIP" in kind]).preprocessing
    )
    assert preprocessing_of(student) == said


def _said(file: Path) -> Any:
    """Its bytes; of JSON what it says, but for the parts' precision, which comes the second time."""
    if file.suffix != ".json":
        return file.read_bytes()
    said = json.loads(file.read_text())
    for part in (said.get("text_config", {}), said.get("vision_config", {})):
        part.pop("dtype", None)
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_alike_with_and_without_cache_padding_and_other_rows(saved: Saved, kind: str) -> None:
    from transformers import AutoModelForImageTextToText

    student, folder = saved[kind]
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    options: Any = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    made = processed(folder)
    written = model.generate(**made, **options)[:, made["input_ids"].shape[1] :]
    again = model.generate(**made, **options, use_cache=False)[:, made["input_ids"].shape[1] :]
    assert torch.equal(written, again)
    for row, (text, images) in enumerate(zip(TEXTS, pictures(), strict=True)):
        alone = processed(folder, [text], [images])
        assert torch.equal(model.generate(**alone, **options)[:, -8:], written[row : row + 1])
    ours = student.generate(inputs_of(made), 8)  # which stops where a text ends
    ends = (ours == student.reads.text.eos).long().cumsum(dim=1) == 0
    assert torch.equal(ours[ends], written[:, : ours.shape[1]][ends])


def test_it_never_writes_an_image_token(saved: Saved) -> None:
    """Which transformers' own class, reading all again without a cache, takes for a picture's."""
    from transformers import AutoModelForImageTextToText

    student, folder = saved["kept, hybrid"]
    model, mark = AutoModelForImageTextToText.from_pretrained(folder).eval(), student.config.image_token_id
    assert json.loads((folder / "generation_config.json").read_text())["suppress_tokens"] == [mark]
    model.generation_config.eos_token_id = None
    made = processed(folder)
    with torch.no_grad():
        first = model(**made).logits[:, -1].argmax(dim=-1)[0]
        model.lm_head.weight[mark] = 9 * model.lm_head.weight[first]  # what it would write first
        assert model(**made).logits[0, -1].argmax() == mark
    options: Any = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    written = model.generate(**made, **options)[:, made["input_ids"].shape[1] :]
    again = model.generate(**made, **options, use_cache=False)[:, made["input_ids"].shape[1] :]
    assert torch.equal(written, again) and not (written == mark).any() and written[0, 0] == first
    ours = load_student(folder)
    with torch.no_grad():
        ours.language_model.lm_head.weight.copy_(model.lm_head.weight)  # type: ignore[union-attr]
    mine = ours.generate(inputs_of(made), 6)  # type: ignore[operator]  # which stops where a text ends
    going = (mine == student.reads.text.eos).long().cumsum(dim=1) == 0
    assert torch.equal(mine[going], written[:, : mine.shape[1]][going]) and going.any()
    model.generation_config.suppress_tokens = None
    with pytest.raises(ValueError, match="do not match"):
        model.generate(**made, **options, use_cache=False)


@pytest.mark.parametrize("kind", ["kept", "vim, pure"])
def test_its_processor_is_the_teacher_s_and_says_the_student_s_tokens(saved: Saved, kind: str) -> None:
    student, folder = saved[kind]
    said = json.loads((folder / "processor_config.json").read_text())
    full = kind != "kept"
    assert said["processor_class"] == "LlavaProcessor" and said["patch_size"] == 8
    assert said["vision_feature_select_strategy"] == ("full" if full else "default")
    assert said["num_additional_image_tokens"] == (0 if full else 1)
    assert said["image_processor"]["image_processor_type"].startswith("CLIP")
    made, looks = processed(folder), student.reads.pictures.eval_transform()
    assert (made["input_ids"] == student.config.image_token_id).sum(dim=1).tolist() == [4, 0, 8]
    assert made["attention_mask"][1, 0] == 0, "padded on the left"
    shown = torch.stack([looks(picture) for row in pictures() for picture in row])
    torch.testing.assert_close(made["pixel_values"], shown, atol=0.05, rtol=0)
    assert (folder / "chat_template.jinja").is_file()


def test_it_is_described_and_cards_say_how_it_is_loaded(saved: Saved) -> None:
    hybrid = card_of(saved["kept, hybrid"][0])
    assert hybrid is not None and hybrid.snippet.startswith("# transformers 5.23 or newer: ")
    for kind in ("kept", "vim, pure"):
        student, folder = saved[kind]
        card = card_of(student)
        assert card is not None and card.pipeline_tag == "image-text-to-text"
        assert card.snippet.startswith("import transmamba") == (kind != "kept")
        found = inspect(folder)
        # one whose layers all have attention is a teacher, too
        assert (found.kind, found.converted) == (
            ("llava", None) if kind == "kept" else (None, ("image", "decoder"))
        )


def test_a_damaged_folder_is_one_line(saved: Saved, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _, folder = saved["vim, pure"]
    tensors = load_file(folder / "model.safetensors")
    del tensors["vision_tower.timm_model.layers.1.mixer.A_log"]
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks .*layers\.1\.mixer\.A_log") as error:
        load_student(tmp_path)
    assert "\n" not in str(error.value)
