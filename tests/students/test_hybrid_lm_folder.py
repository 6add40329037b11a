"""The folder of a hybrid: a checkpoint of transformers, whole without us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fresh_process
import pytest
import torch
from hybrids import (
    WITH_US,
    WITHOUT_US,
    WORDS,
    hybrid,
    llama,
    make,
    moved,
    quiet_texts,
    relative,
    texts,
    with_us,
)
from torch import Tensor

from transmamba import UserError, inspect, load_student, save_student
from transmamba.core.output import Context
from transmamba.ecosystems.find import card_of
from transmamba.students.hybrid_lm.model import HybridStudent
from transmamba.subcloning.checkpoint import convert_checkpoint

ALONE = """
import json, sys
import torch
{first}
from transformers import AutoModelForCausalLM
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.save(model(torch.load(sys.argv[1])).logits, folder + "/logits.pt")
{last}
"""
KINDS = {
    "pure": ("Llama 2", ()),
    "tied, mixed": ("SmolLM (tied)", (1,)),
    "biases, mixed": ("Qwen2 (QKV biases)", (0, 2)),
    "biases, pure": ("Qwen2 (QKV biases)", ()),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[HybridStudent, Path]]:
    found = {}
    for kind, (name, kept) in KINDS.items():
        student, folder = moved(hybrid(make(name), *kept)), tmp_path_factory.mktemp("student")
        save_student(student, folder)
        found[kind] = student, folder
    return found


def test_a_process_without_us_loads_the_same_model(
    saved: dict[str, tuple[HybridStudent, Path]], tmp_path: Path
) -> None:
    torch.save(texts(), tmp_path / "text.pt")
    program = ALONE.format(**(WITH_US if with_us() else WITHOUT_US))
    done = fresh_process.run(program, tmp_path / "text.pt", *(folder for _, folder in saved.values()))
    assert done.returncode == 0, done.stderr[-2000:]
    for student, folder in saved.values():
        with torch.no_grad():
            assert relative(torch.load(folder / "logits.pt"), student(texts())) < 1e-5
        (folder / "logits.pt").unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_as_ours(
    saved: dict[str, tuple[HybridStudent, Path]], kind: str, tmp_path: Path
) -> None:
    student, folder = saved[kind]
    again = load_student(folder)
    assert isinstance(again, HybridStudent) and not again.training
    assert again.attention_layers == student.attention_layers and again.num_layers == 3
    mine, theirs = dict(student.named_parameters()), dict(again.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    save_student(again, tmp_path / "twice")
    assert (tmp_path / "twice" / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


def generated(model: Any, text: Tensor, **options: Any) -> Tensor:
    found: Tensor = model.generate(text, max_new_tokens=12, do_sample=False, **options)
    return found[:, text.shape[1] :]


@pytest.mark.parametrize("kind", KINDS)
def test_it_generates_alike_with_and_without_cache_and_padding(
    saved: dict[str, tuple[HybridStudent, Path]], kind: str
) -> None:
    from transformers import AutoModelForCausalLM

    student, folder = saved[kind]
    text, lengths = texts(3, 9), (9, 4, 6)
    mask = torch.stack([torch.arange(9) >= 9 - length for length in lengths]).long()
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    for model in (stock, student.stock()):
        quiet_texts(model)
        model.generation_config.eos_token_id = None
        cached = generated(model, text, attention_mask=mask)
        assert torch.equal(cached, generated(model, text, attention_mask=mask, use_cache=False))
        for row, length in enumerate(lengths):
            alone = text[row : row + 1, 9 - length :]
            assert torch.equal(cached[row : row + 1], generated(model, alone, attention_mask=alone * 0 + 1))
        # greedy, by our own forward pass of the whole text each time
        mine = text[:1]
        for _ in range(12):
            with torch.no_grad():
                mine = torch.cat([mine, student(mine)[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(cached[:1], mine[:, 9:])


def teacher_folder(folder: Path) -> Path:
    """A Llama with tokenizer, chat template, generation configuration and model card beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    llama().save_pretrained(folder)
    words = {f"w{k}": k for k in range(WORDS)}
    made = Tokenizer(models.WordLevel(words, unk_token="w3"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="w1", eos_token="w2", pad_token="w0", padding_side="left"
    )
    tokenizer.chat_template = "{% for m in messages %}w7 {{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 5], pad_token_id=0, top_k=3, do_sample=True
    ).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: somebody/llama\n---\n")
    return folder


def test_a_checkpoint_becomes_a_folder_with_its_words(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    teacher, out = teacher_folder(tmp_path / "teacher"), tmp_path / "out"
    report = convert_checkpoint(str(teacher), out, student="hybrid_lm", options={"attention_layers": [1]})
    assert not report.unused and report.covered > 0.8
    found = {path.name for path in out.iterdir()}
    assert {"chat_template.jinja", "tokenizer.json", "subclone.json", "README.md"} <= found
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("w9 w8").input_ids == [9, 8] and tokenizer.padding_side == "left"
    chat = [{"role": "user", "content": "w9"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False).split() == ["w7", "w9"]
    generation = GenerationConfig.from_pretrained(out)
    assert (generation.eos_token_id, generation.top_k, generation.do_sample) == ([2, 5], 3, True)
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["BambaForCausalLM"] and config["dtype"] == "float32"
    again = load_student(out)
    card = card_of(again)
    assert card is not None and (card.library, card.pipeline_tag) == ("transformers", "text-generation")
    assert card.snippet.startswith("# transformers 5.23 or newer: ")
    assert (card.licence, card.base_model) == ("mit", "somebody/llama")
    save_student(again, tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == found - {"README.md", "subclone.json"}


def test_half_precision_keeps_the_positions(tmp_path: Path) -> None:
    """In bfloat16 the stock class turns by positions in float32; so does ours."""
    student = hybrid(llama(max_position_embeddings=4096), 0, 1, 2).to(torch.bfloat16)
    text = texts(1, 400)
    with torch.no_grad():
        stock = student.stock()(text, use_cache=False).logits.float()
        assert relative(student(text).float(), stock) < 2e-2
    waves = student._rope.waves(torch.tensor([[4000]]))
    assert waves[0].dtype == torch.float32 and Context() == Context()


def test_a_damaged_folder_is_refused_in_a_line(
    saved: dict[str, tuple[HybridStudent, Path]], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    _, folder = saved["tied, mixed"]
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mamba.A_log"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks model\.layers\.0\.mamba\.A_log") as said:
        load_student(tmp_path)
    assert "\n" not in str(said.value)


def test_inspect_says_which_layers_are_what(saved: dict[str, tuple[HybridStudent, Path]]) -> None:
    """From its configuration, without weights."""
    for kind, said, mixers in (
        ("biases, mixed", "hybrid", ["attention", "mamba2", "attention"]),
        ("pure", "mamba2", ["mamba2"] * 3),
    ):
        student, folder = saved[kind]
        found = inspect(folder)
        tower = found.towers["decoder"]
        seen: list[str] = []
        for run in tower["sublayers"]:
            seen += [run["of"][0]["kind"]] * (run["last"] + 1 - run["first"])
        assert (found.converted, tower["kind"], seen) == (("decoder",), said, mixers)
        assert found.parameters == sum(p.numel() for p in student.parameters())
        assert found.refused is None and tower["embedding"]["vocabulary"] == WORDS
