"""Benchmarks as a key of the task language: built with it, measured with the final split alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import reading, texts_file, tokenizer_folder, write_jsonl

import transmamba
from transmamba.cli.main import main
from transmamba.config import load as configs
from transmamba.config.registry import TASKS
from transmamba.errors import ConfigError, UserError
from transmamba.tasks.language import Language

ROWS = [
    dict(
        query=f"Question: Which is {k}?",
        choices=[f"the {k}", "a cat", "a mat", "off"][: 2 + k % 3],
        gold=k % 2,
    )
    for k in range(8)
]
TEXTS = tuple(
    f"The cat sat on mat {k}. A dog ran {k * k} times. It did not see {k + 7} cats." for k in range(40)
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return {
        "texts": texts_file(tmp_path / "texts.jsonl", TEXTS),
        "arc": write_jsonl(tmp_path / "arc.jsonl", ROWS),
        "words": write_jsonl(tmp_path / "words.jsonl", [dict(text="The cat sat"), dict(text="A dog ran")]),
    }


@pytest.fixture
def make(files: dict[str, str], tmp_path: Path) -> Callable[..., Language]:
    words = reading(tmp_path / "tokenizer", context=256)

    def made(**options: Any) -> Language:
        data = dict(name="text", train=files["texts"], test=files["texts"])
        return configs.parse(TASKS["language"], dict(data=data, block=16, **options), "task").build(words)

    return made


def every(files: dict[str, str]) -> list[dict[str, Any]]:
    return [
        dict(name="arc_easy", path=files["arc"]),
        dict(name="arc_easy_letters", path=files["arc"], permuted=2, items=5),
        dict(name="lambada", path=files["words"]),
        dict(name="needle", path=files["texts"], lengths=[180, 240], items=3),
    ]


KEYS = [
    *("arc_easy_acc", "arc_easy_acc_norm", "arc_easy_letters_acc", "arc_easy_letters_same"),
    *("lambada_acc", "lambada_perplexity", "needle_acc", "needle_180_acc", "needle_240_acc"),
]


def test_the_final_split_has_them(make: Callable[..., Language], files: dict[str, str]) -> None:
    task = make(benchmarks=every(files), validation=0.2, final_split="test")
    assert [each.split for each in task.evaluators("test")] == [
        *("test", "arc_easy", "arc_easy_letters", "lambada", "needle")
    ]
    assert [each.split for each in task.evaluators("validation")] == ["validation"]
    keys = [metric.key for metric in task.metrics]
    assert keys[0] == "perplexity" and keys[-len(KEYS) :] == KEYS and len(keys) == len(set(keys))
    assert not make().benchmarks.evaluators


def test_what_is_wrong_is_told_before_training(make: Callable[..., Language], files: dict[str, str]) -> None:
    twice = every(files)[::3] + every(files)[3:]
    with pytest.raises(ConfigError, match="benchmarks has two called needle; keep one of them"):
        make(benchmarks=twice)
    with pytest.raises(ConfigError, match=r"benchmarks\.0: unknown benchmark 'needel'.*needle"):
        make(benchmarks=[dict(name="needel")])
    with pytest.raises(ConfigError, match=r"benchmarks\.0\.permuted: 0; write a number of orders"):
        make(benchmarks=[dict(name="arc_easy_letters", path=files["arc"], permuted=0)])
    with pytest.raises(UserError, match=r"^benchmarks\.1: .*none\.jsonl: cannot be read"):
        make(benchmarks=[every(files)[0], dict(name="lambada", path="none.jsonl")])
    with pytest.raises(UserError, match=r"^benchmarks\.0: lengths has 512, but the model reads at most 256"):
        make(benchmarks=[dict(name="key_value", lengths=[256, 512])])


def llama(folder: Path) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=300, max_position_embeddings=256, initializer_range=0.3, **shape)
    ).save_pretrained(folder)
    tokenizer_folder(folder)
    return str(folder)


def test_a_model_is_evaluated_beside_its_teacher(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, model = llama(tmp_path / "teacher"), str(tmp_path / "student")
    student, _ = transmamba.convert(transmamba.load_teacher(teacher), "hybrid_lm", attention_layers=[0])
    transmamba.save_student(student, model)
    words = ["evaluate", model, "--teacher", teacher, "--task", "language", "--data", files["texts"]]
    words += ["task.block=32", "--batch-size", "8", "--device", "cpu"]
    for number, each in enumerate(every(files)):
        words += [f"task.benchmarks.{number}.{key}={value}" for key, value in each.items()]
    assert main([*words, "--json"]) == 0
    found = json.loads(re.sub(r"\A.*?^(?={$)", "", capsys.readouterr().out, flags=re.DOTALL | re.MULTILINE))
    for who in ("student", "teacher"):
        assert found[who].keys() >= {*KEYS, "perplexity"}
    means = set(KEYS) - {"lambada_perplexity"}
    assert found["difference"].keys() >= means
    for key in means:
        difference = found["student"][key] - found["teacher"][key]
        assert found["difference"][key]["mean"] == pytest.approx(difference)
        assert found["difference"][key]["low"] <= difference <= found["difference"][key]["high"]
    assert found["difference"]["needle_180_acc"]["items"] == 3
    assert found["difference"]["arc_easy_letters_acc"]["items"] == 5
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "needle at 180 tokens, acc %" in table and "arc_easy_letters, same answer in all orders %" in table
    assert main([*words, "--split", "train"]) == 2
    assert "task.benchmarks.0.name=arc_easy is measured with the split test" in capsys.readouterr().err


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "benchmarks"]) == 0
    shown = capsys.readouterr().out
    for name in ("piqa", "hellaswag", "arc_easy", "arc_easy_letters", "lambada", "needle", "key_value"):
        assert f"\n  {name} " in shown
    assert "lengths, items, seed, path, span, cue" in shown
