"""What writes for a teacher holds the view's own tensors, and is not read from its files again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llavas import made_by, make, together
from small_language import llama_folder
from small_llava import llava_folder
from torch import Tensor, nn

from transmamba.ecosystems import decoders
from transmamba.ecosystems.generation import left_padded
from transmamba.teachers.load import adapt_teacher, load_teacher
from transmamba.teachers.teacher import Teacher
from transmamba.views.sublayers import map_tensors, named_tensors

WORDS = left_padded([[5, 6, 7], [9]])


def held(teacher: Teacher) -> set[int]:
    return {tensor.data_ptr() for _, tensor in named_tensors(teacher.view)}


def written_by(teacher: Teacher) -> dict[str, Tensor]:
    """The parameters of the model that wrote for it."""
    model: nn.Module = teacher.writer._model  # type: ignore[union-attr]
    return dict(model.named_parameters(remove_duplicate=False))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each time that weights are read."""
    found: list[str] = []
    plain = decoders.load_decoder

    def counted(source: Any, *given: Any) -> Any:
        found.append(source.text)
        return plain(source, *given)

    monkeypatch.setattr(decoders, "load_decoder", counted)
    return found


def slowly(model: Any, inputs: dict[str, Tensor], count: int) -> list[list[int]]:
    """The likeliest words by transformers' model without a cache, each row alone."""
    rows = []
    for ids, mask in zip(inputs["text"], inputs["text_mask"], strict=True):
        text = ids[mask][None]
        for _ in range(count):
            with torch.no_grad():
                text = torch.cat([text, model(input_ids=text, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        rows.append(text[0, int(mask.sum()) :].tolist())
    return rows


def test_a_language_model_is_read_and_held_once(tmp_path: Path, loads: list[str]) -> None:
    from transformers import AutoModelForCausalLM

    teacher = load_teacher(llama_folder(tmp_path, context=64))
    made = teacher.generate(WORDS, 5)
    assert len(loads) == 1
    assert {tensor.data_ptr() for tensor in written_by(teacher).values()} <= held(teacher)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert made.tolist() == slowly(model, WORDS, 5)
    # somewhere else it is what is there that writes
    moved = teacher._with(map_tensors(teacher.view, torch.clone))
    assert torch.equal(moved.generate(WORDS, 5), made) and len(loads) == 1
    assert {tensor.data_ptr() for tensor in written_by(moved).values()} <= held(moved)


def test_a_folded_one_shares_what_folding_leaves(tmp_path: Path, loads: list[str]) -> None:
    teacher = load_teacher(llama_folder(tmp_path, context=64))
    made = teacher.generate(WORDS, 5)
    folded = teacher.fold()
    assert torch.equal(folded.generate(WORDS, 5), made) and len(loads) == 2
    shared = {name for name, tensor in written_by(folded).items() if tensor.data_ptr() in held(folded)}
    left = {
        name for name in written_by(folded) if name.split(".")[-2] in ("o_proj", "down_proj", "embed_tokens")
    }
    assert shared == left
    read = {name: tensor.clone() for name, tensor in written_by(folded).items()}
    teacher.generate(WORDS, 5)
    assert len(loads) == 2, "all of it is in the view that is not folded"
    assert all(torch.equal(read[name], tensor) for name, tensor in written_by(teacher).items())


@pytest.mark.parametrize("image_tokens", (None, 1))
def test_a_llava_holds_beside_its_view_what_that_does_not_read(
    tmp_path: Path, loads: list[str], image_tokens: int | None
) -> None:
    from transmamba.teachers.llava import Llava

    teacher = Llava(model=str(llava_folder(tmp_path)), image_tokens=image_tokens).build()
    mark = teacher.preprocessing.image_token
    text = torch.tensor([[5, *[mark] * (image_tokens or 4), 9, 11]])
    inputs = {"text": text, "text_mask": torch.ones_like(text, dtype=torch.bool)}
    inputs["image"] = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    made, logits = teacher.generate(inputs, 1), teacher(inputs).logits
    assert logits is not None and made[0, 0] == logits()[0, -1].argmax() and len(loads) == 1
    beside = {name for name, tensor in written_by(teacher).items() if tensor.data_ptr() not in held(teacher)}
    assert beside and all(".post_layernorm." in name or ".layers.1." in name for name in beside)
    assert all("vision_tower" in name for name in beside)


def _gemma() -> Any:
    from transformers import GemmaConfig, GemmaForCausalLM

    sizes: dict[str, Any] = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    return GemmaForCausalLM(GemmaConfig(**sizes, num_attention_heads=4, num_key_value_heads=1, head_dim=8))


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=32))


@pytest.mark.parametrize("kind", (_gemma, _gpt2), ids=("norms that are computed", "projections in pieces"))
def test_what_a_view_has_otherwise_is_the_model_s_own(kind: Any) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    teacher = adapt_teacher(model)
    assert teacher.generate(WORDS, 4).tolist() == slowly(model, WORDS, 4)
    # of which nothing is held before it is asked, where the view has it in pieces
    assert (teacher.writer._bare is None) == (kind is _gpt2)  # type: ignore[union-attr]


def test_a_module_in_hand_stays_as_it_is() -> None:
    model = make().train()
    before = {name: (id(tensor), tensor.requires_grad) for name, tensor in model.named_parameters()}
    teacher, inputs = adapt_teacher(model), together()
    made = teacher.generate(inputs, 1)
    assert {n: (id(t), t.requires_grad) for n, t in model.named_parameters()} == before and model.training
    assert torch.equal(made[:, 0], made_by(model.eval(), inputs)[:, -1].argmax(-1))
    mine = {tensor.data_ptr() for tensor in model.parameters()}
    shared = [tensor.data_ptr() in mine for tensor in written_by(teacher).values()]
    assert sum(shared) >= len(shared) - 18  # but the block that is not read, and the norm behind it
