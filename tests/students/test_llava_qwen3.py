"""A LLaVA whose decoder normalises queries and keys (Qwen3), which no hybrid of transformers does: its
student's decoder is of our own class, within one of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fresh_process
import llavas
import pytest
import torch
from llavas import llava, made_by, make, moved, relative, rows, together
from torch import Tensor

import transmamba
from transmamba import load_student, save_student
from transmamba.students.llava.model import LlavaStudent

# a process that loads it without us, reads and writes
ALONE = """
import sys
import torch
from transformers import AutoModelForImageTextToText
given, folder = torch.load(sys.argv[1]), sys.argv[2]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    logits = model(**given, use_cache=False).logits
    written = model.generate(**given, max_new_tokens=5, do_sample=False)
torch.save((logits, written), folder + "/made.pt")
assert not [name for name in sys.modules if name.startswith("transmamba.")]
"""
CROSS = dict(num_heads=2, state_size=4)
PARTS: dict[str, dict[str, Any]] = {
    "kept": {},
    "one layer of attention": dict(decoder={"kind": "hybrid", "attention_layers": [1]}),
    "vim, no attention, cross": dict(image={"kind": "vim"}, decoder={"kind": "hybrid"}, cross=CROSS),
}


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Any:
    kind = ("Siglip", "Qwen3", dict(vision_feature_select_strategy="full"), 4)
    monkeypatch.setitem(llavas.TEACHERS, "SigLIP, Qwen3", kind)
    return make("SigLIP, Qwen3", head_dim=8)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_its_class_holds_its_tensors_and_writes_as_it_reads(
    teacher: Any, parts: dict[str, Any], tmp_path: Path
) -> None:
    """With a cache and padding, each row what step by step without them makes of it alone."""
    student, inputs = llava(teacher, **parts), together()
    mask = inputs["text_mask"]
    if not parts:
        for row, (text, seen) in enumerate(rows()):
            alone = {"text": text[None], **({"image": seen} if len(seen) else {})}
            assert relative(made_by(student, inputs)[row][mask[row]], made_by(teacher, alone)[0]) < 1e-5
    student = moved(student)
    asked = {"prompt_mask": inputs["prompt_mask"]} if student.cross is not None else {}
    assert relative(made_by(student.stock(), inputs, **asked)[mask], made_by(student, inputs)[mask]) < 1e-5
    save_student(student, tmp_path / "s")
    again = load_student(tmp_path / "s")
    assert isinstance(again, LlavaStudent) and torch.equal(made_by(again, inputs), made_by(student, inputs))
    found = transmamba.inspect(tmp_path / "s")
    assert found.towers["decoder"]["sublayers"][0]["of"][0]["qk_norm"] == "RMSNorm 1e-06"
    student.language_model.config.eos_token_id = student.config.text_config.eos_token_id = None
    written = student.generate(inputs, 5)
    for row, (text, seen) in enumerate(rows()):
        prompt = inputs["prompt_mask"][row][mask[row]]
        assert written[row].tolist() == slowly(student, text, seen, prompt, 5)


def slowly(student: LlavaStudent, text: Tensor, seen: Tensor, prompt: Tensor, count: int) -> list[int]:
    """The likeliest words of one row, read whole for each."""
    words = text[None]
    for _ in range(count):
        said = torch.zeros(1, words.shape[1], dtype=torch.bool)
        said[0, : len(prompt)] = prompt
        given = {"text": words, "prompt_mask": said, **({"image": seen} if len(seen) else {})}
        words = torch.cat([words, made_by(student, given)[:, -1:].argmax(-1)], dim=1)
    return words[0, len(text) :].tolist()


def test_a_process_without_us_loads_it(teacher: Any, tmp_path: Path) -> None:
    student = moved(llava(teacher, **PARTS["one layer of attention"]))
    student.language_model.config.eos_token_id = student.config.text_config.eos_token_id = None
    save_student(student, tmp_path / "s")
    text, seen = rows()[0]
    torch.save(dict(input_ids=text[None], pixel_values=seen), tmp_path / "given.pt")
    done = fresh_process.run(ALONE, tmp_path / "given.pt", tmp_path / "s")
    assert done.returncode == 0, done.stderr[-2000:]
    logits, written = torch.load(tmp_path / "s" / "made.pt")
    inputs = {"text": text[None], "image": seen}
    assert relative(logits, made_by(student, inputs)) < 1e-5
    prompt = torch.ones_like(text, dtype=torch.bool)
    assert written[0, len(text) :].tolist() == slowly(student, text, seen, prompt, 5)
