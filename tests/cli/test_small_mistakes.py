"""Keys of another place, files that are no recipe, the version, splits that are not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import transmamba

Command = Callable[..., Any]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.seed=3", "trainer.seed: unknown key here; write 'seed'"),
        ("trainer.lr=3", "trainer.lr: unknown key here; write 'stages.0.lr' or 'scratch.lr'"),
        ("init.global_batch=3", "init.global_batch: unknown key here; write 'trainer.global_batch'"),
        ("trainer.kep=3", "trainer.kep: unknown key; did you mean 'keep'?"),
        ("stages.0.epochs=-5", "stages.0.epochs: -5.0; write a number above 0"),
    ],
)
def test_a_key_of_another_place(override: str, says: str, command: Command, recipe: Path) -> None:
    done = command("distill", "--config", recipe, override)
    assert done.code == 2 and says in done.err, done.err


def test_a_file_that_is_no_recipe(command: Command, tmp_path: Path) -> None:
    (tmp_path / "layers.json").write_text('{"order": [1, 0], "kl": [0.1], "seed": 0}')
    done = command("distill", "--config", tmp_path / "layers.json")
    done.refuses("layers.json: it is no recipe, for it has none of output_dir, task, student, stages; write")
    assert len(done.err.splitlines()) == 1


def test_the_version(command: Command) -> None:
    done = command("--version")
    assert (done.code, done.out) == (0, f"transmamba {transmamba.__version__}\n")


@pytest.mark.parametrize("held_out", [0.5, 0.0])
def test_a_split_that_lies_in_train(held_out: float, command: Command, tmp_path: Path) -> None:
    from small_language import TEXTS, texts_file, tokenizer_folder
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_folder(tmp_path / "m")
    shape = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=400)).save_pretrained(tmp_path / "m")
    del tokenizer
    words = ["--task", "language", "--data", "text", f"train={texts_file(tmp_path / 'a.jsonl', TEXTS)}"]
    done = command("evaluate", tmp_path / "m", *words, f"task.validation={held_out}")
    done.refuses("reader text was given no test split; write test: as well")
    assert ("--split validation" in done.err) is bool(held_out)
