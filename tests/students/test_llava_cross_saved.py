"""The class that a LLaVA with cross-Mamba is saved as: no bit of it hangs on what is no prompt, and what it
refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from llavas import MARK, crossed, llava, loud, made_by, moved, seen, together
from PIL import Image
from small_llava import IMAGE, llava_folder
from torch import Tensor

from transmamba import load_teacher, save_student

ALL = ("state", "prefix", "reported", "film", "attention")
TOWERS: dict[str, dict[str, Any]] = {
    "before the connector": dict(every=None),
    "every second layer of a vim": dict(every=2, image={"kind": "vim"}),
}


def padded(inputs: dict[str, Tensor], left: int, right: int) -> dict[str, Tensor]:
    """The same texts with words of padding around them."""
    filled = {"text": 7, "text_mask": False, "prompt_mask": False}
    return {
        name: F.pad(x, (left, right), value=filled[name]) if name in filled else x
        for name, x in inputs.items()
    }


@pytest.mark.parametrize("place", TOWERS.values(), ids=TOWERS)
@pytest.mark.parametrize("mode", ALL)
def test_padding_and_answers_change_no_bit(mode: str, place: dict[str, Any]) -> None:
    student, inputs = loud(moved(crossed(mode, **place))), together()
    stock, prompt, text = student.stock(), inputs["prompt_mask"], inputs["text"]
    before = seen(stock, inputs, prompt_mask=prompt)
    for left, right in ((1, 0), (0, 7), (70, 5), (0, 300)):
        given = padded(inputs, left, right)
        assert torch.equal(seen(stock, given, prompt_mask=given["prompt_mask"]), before), (left, right)
    given = together(left=False)
    assert torch.equal(seen(stock, given, prompt_mask=given["prompt_mask"]), before)
    answers = torch.where(prompt | (text == MARK), text, (text + 11) % MARK)
    assert torch.equal(seen(stock, {**inputs, "text": answers}, prompt_mask=prompt), before)
    asked = torch.where(prompt, (text + 11) % MARK, text)
    assert not torch.equal(seen(stock, {**inputs, "text": asked}, prompt_mask=prompt), before)


@pytest.mark.parametrize("place", TOWERS.values(), ids=TOWERS)
@pytest.mark.parametrize("mode", ALL)
def test_without_a_cache_pictures_are_read_alike_with_each_word(mode: str, place: dict[str, Any]) -> None:
    """Written words make a text longer, and no picture knows it: all is written as with a cache."""
    inputs = together()
    stock = loud(moved(crossed(mode, **place))).stock()
    stock.generation_config.eos_token_id = None
    given: dict[str, Any] = dict(input_ids=inputs["text"], attention_mask=inputs["text_mask"].long())
    given |= dict(pixel_values=inputs["image"], max_new_tokens=6, do_sample=False, pad_token_id=0)
    written, kept = stock.generate(**given), []
    hook = stock.model.multi_modal_projector.register_forward_hook(lambda _, __, made: kept.append(made))
    assert torch.equal(stock.generate(**given, use_cache=False), written)
    hook.remove()
    assert len(kept) == 6 and all(torch.equal(each, kept[0]) for each in kept)


@pytest.mark.parametrize("mode", ["prefix", "reported"])
def test_a_saved_folder_writes_what_the_student_writes(mode: str, tmp_path: Path) -> None:
    """Of a SigLIP over a Qwen2; with its own processor, a cache or none, other rows or none."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    other: Any = dict(vision="Siglip", language="Qwen2", strategy="full")
    teacher = load_teacher(llava_folder(tmp_path / "teacher", **other))
    cross = dict(mode=mode, num_heads=2, state_size=4)
    student, folder = loud(moved(llava(teacher, cross=cross, decoder={"kind": "hybrid"}))), tmp_path / "made"
    save_student(student, folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    model.generation_config.eos_token_id = None
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    drawn = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    images = list(map(Image.fromarray, drawn))
    texts = [f"a {IMAGE} cat sat", "no picture", f"{IMAGE} one {IMAGE} two on"]
    shown = [images[:1], [], images[1:]]
    more: dict[str, Any] = dict(return_tensors="pt", padding=True)
    given = dict(processor(text=texts, images=shown, **more))
    options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    written = model.generate(**given, **options)
    assert torch.equal(written, model.generate(**given, **options, use_cache=False))
    for row in range(3):
        alone = dict(processor(text=[texts[row]], images=[shown[row]] if shown[row] else None, **more))
        assert torch.equal(model.generate(**alone, **options)[:, -8:], written[row : row + 1, -8:])
    real = given["attention_mask"].bool()
    prompt = real & (given["input_ids"] != student.config.image_token_id)
    inputs = {"text": given["input_ids"], "text_mask": real, "prompt_mask": prompt}
    ours = student.generate({**inputs, "image": given["pixel_values"]}, 8)  # which stops where a text ends
    going = (ours == student.reads.text.eos).long().cumsum(dim=1) == 0
    assert torch.equal(ours[going], written[:, -8:][:, : ours.shape[1]][going])


def test_image_tokens_without_pictures_are_refused() -> None:
    """Also before writing; but not those that are written, of which there is no picture."""
    inputs = together()
    stock = moved(crossed()).stock()
    stock.generation_config.eos_token_id = None
    bare = {name: inputs[name] for name in ("text", "text_mask")}
    given: dict[str, Any] = dict(input_ids=bare["text"], attention_mask=bare["text_mask"].long())
    options: dict[str, Any] = dict(max_new_tokens=3, do_sample=False, pad_token_id=0)
    for call in (
        lambda: made_by(stock, bare),
        lambda: made_by(stock, bare, prompt_mask=inputs["prompt_mask"]),
        lambda: stock.generate(**given, **options),
        lambda: stock.generate(**given, **options, use_cache=False),
    ):
        with pytest.raises(ValueError, match=r"\[4, 0, 8\] image tokens, their 0 pictures make 0"):
            call()
    words = {name: x[1:2] for name, x in bare.items()}
    assert made_by(stock, words).isfinite().all()
    stock.generation_config.suppress_tokens = None
    only: Any = lambda _, __: [MARK]  # noqa: E731
    for cache in (True, False):
        written = stock.generate(
            input_ids=words["text"], **options, use_cache=cache, prefix_allowed_tokens_fn=only
        )
        assert (written[0, -3:] == MARK).all()


def test_labels_on_the_prompt_are_refused() -> None:
    """transformers' habit of labels that are the whole text would leave pictures nothing to read."""
    inputs = together()
    student = moved(crossed())
    stock, text = student.stock(), inputs["text"]
    labels = text.masked_fill(~inputs["text_mask"], -100)
    with pytest.raises(ValueError, match=r"labels ask for every word of row 0.*write -100 on the prompt"):
        made_by(stock, inputs, labels=labels)
    told = made_by(stock, inputs, labels=labels, prompt_mask=inputs["prompt_mask"])
    assert torch.equal(told, made_by(stock, inputs, prompt_mask=inputs["prompt_mask"]))
    words = {name: inputs[name][1:2] for name in ("text", "text_mask")}
    assert made_by(stock, words, labels=labels[1:2]).isfinite().all(), "without pictures nothing reads it"


def test_a_compiled_step_asks_no_device() -> None:
    """One graph, which a number that is asked for would break; what does not fit ends it all the same."""
    inputs = together()
    stock, text, pixels = moved(crossed()).stock(), inputs["text"], inputs["image"]
    labels = text.masked_fill(~inputs["prompt_mask"], -100)

    def check(text: Tensor, prompt: Tensor, count: int) -> tuple[Tensor, Tensor]:
        stock._check_asked(text, prompt)
        found: tuple[Tensor, Tensor] = stock.model._rows(text, count, None)
        return found

    compiled = torch.compile(check, backend="aot_eager", fullgraph=True)
    prompt = labels == -100
    for rows, count in ((slice(None), len(pixels)), (slice(1, 2), 0)):
        made, wanted = (call(text[rows], prompt[rows], count) for call in (compiled, check))
        assert all(map(torch.equal, made, wanted))
    with pytest.raises(RuntimeError, match="other image tokens than their pictures make"):
        compiled(text, prompt, 0)
    with pytest.raises(RuntimeError, match="labels ask for every word of a row"):
        compiled(text, torch.zeros_like(prompt), len(pixels))
