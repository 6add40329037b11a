"""Students of ours whose layers all have attention, fine-tuned, are teachers: LLaVAs, of fewer tokens of a
picture, too, and language models, of both classes of transformers that they are saved as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import llama
from llavas import TEACHERS, llava, made_by, make, moved, relative, together
from transformers import Qwen2Config, Qwen2ForCausalLM

import transmamba
from transmamba import UserError, convert, load_student, load_teacher, save_student
from transmamba.ecosystems.fewer_tokens import with_tokens
from transmamba.teachers.llava import Llava
from transmamba.teachers.load import adapt_teacher


@pytest.mark.parametrize("tokens", (None, 1), ids=("all tokens", "one token"))
@pytest.mark.parametrize("name", ("CLIP, Llama", "SigLIP, Qwen2", "SigLIP, first layer, tied"))
def test_a_llava_whose_parts_are_kept(name: str, tokens: int | None, tmp_path: Path) -> None:
    count = TEACHERS[name][3] if tokens is None else tokens
    student, inputs = moved(llava(adapt_teacher(with_tokens(make(name), tokens)))), together(count)
    save_student(student, tmp_path / "s")
    teacher, mask = load_teacher(tmp_path / "s"), inputs["text_mask"]
    logits = teacher(inputs).logits
    assert logits is not None and relative(logits()[mask], made_by(student, inputs)[mask]) < 1e-5
    found = transmamba.inspect(tmp_path / "s", check=True)
    assert found.agrees and found.parts["connector"]["tokens_a_picture"] == count
    assert torch.equal(teacher.generate(inputs, 3), student.generate(inputs, 3))
    adapted = adapt_teacher(student.stock())(inputs).logits
    assert adapted is not None and torch.equal(adapted(), logits())
    # and so on: its own student, kept again, and converted
    again = llava(teacher)
    assert again.tokens == count and relative(made_by(again, inputs)[mask], logits()[mask]) < 1e-5
    hybrid = llava(tmp_path / "s", image={"kind": "vim"}, decoder={"kind": "hybrid", "attention_layers": [1]})
    save_student(hybrid, tmp_path / "hybrid")
    assert torch.equal(made_by(load_student(tmp_path / "hybrid"), inputs), made_by(hybrid, inputs))


def qwen2() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    made: Any = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    return made


@pytest.mark.parametrize("make_teacher", (llama, qwen2))
def test_a_language_model_that_is_kept(make_teacher: Any, tmp_path: Path) -> None:
    model = make_teacher()
    depth = model.config.num_hidden_layers
    student, _ = convert(model, "hybrid_lm", attention_layers=tuple(range(depth)))
    save_student(student, tmp_path / "s")
    teacher = load_teacher(tmp_path / "s")
    text = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = teacher({"text": text}).logits
    with torch.no_grad():
        wanted = model(input_ids=text, use_cache=False).logits
    assert logits is not None and relative(logits(), wanted) < 1e-5
    assert transmamba.inspect(tmp_path / "s", check=True).agrees
    again, _ = convert(tmp_path / "s", "hybrid_lm", attention_layers=(1,))
    assert again.attention_layers == (1,)  # type: ignore[attr-defined]


def test_what_is_no_teacher_is_said(tmp_path: Path) -> None:
    pooled = adapt_teacher(with_tokens(make(), 1))
    save_student(llava(pooled), tmp_path / "kept")
    with pytest.raises(UserError, match=r"image_tokens is 4, but .* reads 1 of a picture; leave it out"):
        Llava(model=str(tmp_path / "kept"), image_tokens=4).build()
    assert Llava(model=str(tmp_path / "kept"), image_tokens=1).build().view.towers.keys() == {
        "image",
        "decoder",
    }
    for name, options, why in (
        (
            "hybrid",
            dict(decoder={"kind": "hybrid", "attention_layers": [1]}),
            "it has Mamba-2 in the place of",
        ),
        ("vim", dict(image={"kind": "vim"}), "image tower"),
        (
            "cross",
            dict(cross=dict(num_heads=2, state_size=4)),
            "it is a student of ours, parts of which no view",
        ),
    ):
        save_student(llava(pooled, **options), tmp_path / name)
        with pytest.raises(UserError, match=why):
            load_teacher(tmp_path / name)
        assert transmamba.inspect(tmp_path / name).converted is not None
