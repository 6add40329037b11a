"""A language model converted with its blocks left in their files: the same student, without the teacher in
memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from transmamba import UserError, convert, load_student
from transmamba.cli.main import main
from transmamba.core.batch import Batch
from transmamba.core.output import Capture
from transmamba.ecosystems.slices import Slices
from transmamba.students.hybrid_lm import stock
from transmamba.subcloning.checkpoint import convert_checkpoint
from transmamba.subcloning.subclone import SubcloneConfig
from transmamba.teachers.load import load_streamed_teacher, load_teacher
from transmamba.teachers.placement import OnDisk

sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))
from decoders_made import DECODERS, SHAPE, WORDS, make

ROOT = Path(__file__).parents[2]
# name -> options of the student
KINDS: dict[str, dict[str, Any]] = {
    "Llama 3 (llama3 RoPE)": dict(attention_layers=[1]),
    "SmolLM (tied)": dict(attention_layers=[0, 2]),
    "Qwen2 (QKV biases)": dict(),
    "Llama, biases, wide heads": dict(attention_layers=[2], depth=2),
}


def folder_of(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint in many files."""
    make(name).to(dtype).save_pretrained(folder, max_shard_size="10KB")
    return folder


def batches(seed: int, *rows: int) -> list[Batch]:
    """Of 20 words, the last four of each first row padding."""
    found = []
    for count in rows:
        text = torch.randint(3, WORDS, (count, 20), generator=torch.Generator().manual_seed(seed + count))
        mask = torch.ones_like(text, dtype=torch.bool)
        mask[0, 16:] = False
        found.append(Batch({"text": text, "text_mask": mask}, {}, torch.arange(count), {"samples": count}))
    return found


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_conversion_of_the_whole_teacher(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    teacher, out = folder_of(name, tmp_path / "teacher", dtype), tmp_path / "out"
    streamed = convert_checkpoint(str(teacher), out, student="hybrid_lm", options=dict(KINDS[name]))
    student, report = convert(load_teacher(teacher), "hybrid_lm", **KINDS[name])
    assert streamed.to_dict() == report.to_dict()
    found, wanted = tensors(out), dict(student.state_dict())
    if name == "SmolLM (tied)":
        del wanted["lm_head.weight"]
    assert {t.dtype for t in found.values()} == {dtype}
    assert all(torch.equal(found[each], wanted[each]) for each in wanted)
    beyond = found.keys() - wanted.keys()
    assert not any(found[each].any() for each in beyond), "only a null layer of a pure one"
    assert isinstance(load_student(out), type(student))


NARROWER = dict(width=20, neurons=24, heads=2)


@pytest.mark.parametrize(("layers", "options"), [("all", {}), (1, {}), ("all", NARROWER)])
def test_with_texts_too(layers: Any, options: dict[str, Any], tmp_path: Path) -> None:
    folder, texts = folder_of("Llama 2", tmp_path), batches(0, 3, 5)
    init, options = SubcloneConfig(layers=layers), dict(options, attention_layers=[2])
    made = []
    for teacher in (load_streamed_teacher(str(folder)), load_teacher(folder)):
        assert teacher is not None
        torch.manual_seed(0)
        student, _ = convert(teacher, "hybrid_lm", init=init, calibration=texts, **options)
        made.append(student.state_dict())
    torch.manual_seed(0)
    others, _ = convert(folder, "hybrid_lm", init=init, calibration=batches(9, 3), **options)
    gate = "model.layers.0.mamba.in_proj.weight"
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[1])
    assert not torch.equal(made[0][gate], others.state_dict()[gate]), "the texts do say something"


def test_each_block_is_read_once_for_its_tensors_and_once_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many batches of text there are; the last block is not run, its attention is kept."""
    folder, read, real = folder_of("Llama 2", tmp_path), Counter[str](), Slices.read

    def counted(self: Slices, names: Any) -> dict[str, Tensor]:
        read.update(names := list(names))
        return real(self, names)

    monkeypatch.setattr(Slices, "read", counted)
    teacher = load_streamed_teacher(str(folder))
    assert teacher is not None and len(read) == 3, "embedding, norm and head"
    # at the same width nothing is ranked by the texts
    convert(teacher, "hybrid_lm", calibration=batches(0, 2, 3, 4), attention_layers=[2])
    times = {name.split(".")[2]: read[name] for name in read if ".layers." in name}
    assert times == {"0": 2, "1": 2, "2": 1}
    read.clear()
    convert(teacher, "hybrid_lm", calibration=batches(0, 2, 3, 4), attention_layers=[2], **NARROWER)
    times = {name.split(".")[2]: read[name] for name in read if ".layers." in name}
    assert times == {"0": 3, "1": 3, "2": 2}, "and once more to rank what a narrower one keeps"
    assert all(".layers." in name for name in read), "embedding, norm and head are there"


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_any_decoder_runs_from_its_files(name: str, tmp_path: Path) -> None:
    folder, text = folder_of(name, tmp_path), batches(1, 3)[0].inputs
    capture = {"decoder": Capture(hidden=frozenset(range(6)))}
    for folded in (False, True):
        whole, streamed = load_teacher(folder), load_streamed_teacher(str(folder))
        assert streamed is not None and isinstance(streamed.view.towers["decoder"].sublayers, OnDisk)
        if folded:
            whole, streamed = whole.fold(), streamed.fold()
        wanted, found = whole(text, capture), streamed(text, capture)
        assert wanted.logits is not None and found.logits is not None
        pairs = [(wanted.logits(), found.logits())]
        pairs += [
            (a, found.streams["decoder"].hidden[s]) for s, a in wanted.streams["decoder"].hidden.items()
        ]
        for a, b in pairs:  # GPT-2's weights are read turned: where they lie, products round otherwise
            assert torch.equal(a, b) if name[:3] != "GPT" else (a - b).abs().max() < 1e-5 * a.abs().max()
        assert streamed.num_params == whole.num_params
        assert streamed.view.towers["decoder"].names == whole.view.towers["decoder"].names


def test_one_block_is_held(tmp_path: Path) -> None:
    teacher = load_streamed_teacher(str(folder_of("Llama 2", tmp_path)))
    assert teacher is not None
    blocks: Any = teacher.view.towers["decoder"].sublayers
    held: list[Any] = []
    for s in (0, 2, 4, 5, 2):
        blocks[s]
        assert set(blocks.last) == {s - s % 2, s - s % 2 + 1}
        gate = blocks[s - s % 2 + 1].gate.weight
        held.append(weakref.ref(gate))
        del gate
    assert [each() is not None for each in held] == [False, False, False, False, True]


def test_students_are_saved_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, options = folder_of("Llama 2", tmp_path / "teacher"), {"attention_layers": [0]}
    convert_checkpoint(str(teacher), tmp_path / "one", student="hybrid_lm", options=dict(options))
    monkeypatch.setattr(stock, "SHARD", "30KB")
    convert_checkpoint(str(teacher), tmp_path / "many", student="hybrid_lm", options=dict(options))
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 3
    wanted, found = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    loaded = load_student(tmp_path / "many").state_dict()
    assert all(torch.equal(loaded[name], wanted[name]) for name in loaded)
    # one file again takes their place
    monkeypatch.setattr(stock, "SHARD", "5GB")
    convert_checkpoint(str(teacher), tmp_path / "many", student="hybrid_lm", overwrite=True)
    assert {path.name for path in (tmp_path / "many").glob("*.safetensors*")} == {"model.safetensors"}


def test_what_is_not_read_by_name_is_read_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that only transformers translates: those of a decoder without its head are such."""
    model = make("SmolLM (tied)")
    model.model.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    with caplog.at_level("WARNING", "transmamba.teacher"):
        convert_checkpoint(str(tmp_path / "base"), tmp_path / "out", student="hybrid_lm")
    assert "it is read whole" in caplog.text and caplog.text.count("\n") == 1
    wanted, _ = convert(model, "hybrid_lm")
    found = tensors(tmp_path / "out")
    assert all(torch.equal(found[n], t) for n, t in wanted.state_dict().items() if n != "lm_head.weight")


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"num_hidden_layers": 4}, {}, "lacks model.layers.3"),
        ({}, {"attention_layers": [7]}, "attention_layers has 7"),
        ({}, {"conv_tap": 1e-4}, "conv_tap is 0.0001, for which torch.float16"),
    ],
)
def test_what_cannot_be_is_one_line(change: Any, options: Any, said: str, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    folder = folder_of("Llama 2", tmp_path / "teacher", torch.float16)
    config = LlamaConfig.from_pretrained(folder).to_dict()
    LlamaConfig(**{**config, **change}).save_pretrained(folder)
    with pytest.raises(UserError, match=said) as error:
        convert_checkpoint(str(folder), tmp_path / "out", student="hybrid_lm", options=options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_peak_is_a_shard_beside_the_student(tmp_path: Path) -> None:
    """Memory that the allocator keeps for later is none that is needed, so it is told to give it back."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=6, num_attention_heads=12)
    few = dict(vocab_size=2000, num_key_value_heads=3, max_position_embeddings=32, tie_word_embeddings=False)
    config = LlamaConfig(**{**SHAPE, **shape, **few})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "teacher", max_shard_size="80MB")
    command = [sys.executable, str(ROOT / "scripts/teacher_memory.py"), "convert"]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "teacher"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("convert"))
    mib = json.loads(line.removeprefix("convert"))
    assert mib["student"] > 200 and 60 < mib["largest_shard"] < 85
    assert mib["above_imports"] < mib["student"] + 1.2 * mib["largest_shard"], mib


def test_texts_are_read_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file of texts, without a test split; by them a narrower student's channels are ranked."""
    from small_language import TEXTS, texts_file, tokenizer_folder
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer_folder(tmp_path / "llama")
    config = LlamaConfig(**{**SHAPE, "vocab_size": 300, "max_position_embeddings": 32})
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    texts = texts_file(tmp_path / "texts.jsonl", TEXTS * 4)
    words = ["convert", str(tmp_path / "llama"), str(tmp_path / "out"), "--student", "hybrid_lm", "width=20"]
    assert main([*words, "task.block=16"]) == 2
    assert "task.block=16 is the reader's, and there is none; write --data" in capsys.readouterr().err
    assert main([*words, "--data", "text", f"data.train={texts}", "task.block=16"]) == 0
    assert "sliced" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/subclone.json").read_text())
    assert found["counts"]["sliced"] > 20 and (tmp_path / "out/tokenizer.json").is_file()
    assert {t.dtype for t in tensors(tmp_path / "out").values()} == {torch.bfloat16}
