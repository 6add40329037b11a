"""A table's head is printed before the first row is timed, and not at all where nothing can be timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import harness
import pytest
from transformers import LlamaConfig, MambaConfig

from transmamba.bench import adapters, decode, experts, inference
from transmamba.cli.main import main
from transmamba.ecosystems.find import save_model

SHORT = "--steps 1 --device cpu"
# verb -> its words, what is asked for times, how many lines its head has, and what it is refused for
TABLES: dict[str, tuple[str, tuple[Any, str], int, tuple[str, ...]]] = {
    "inference": (
        f"--teacher VIT --sizes 8 --tokens 20 {SHORT}",
        (inference, "_peak"),
        1,
        ("--students vimm", "--sizes 1", "--steps 0"),
    ),
    "decode": (
        f"--teacher LLAMA --keep 1 --lengths 12 --batch 1 --tokens 2 {SHORT}",
        (decode, "measured"),
        2,
        ("--keep 7", "--lengths 2", "--student LLAMA --keep ,"),
    ),
    "experts": (
        f"--experts 2,4 --width 16 --neurons 32 --tokens 32 --precision no {SHORT}",
        (experts, "interleaved"),
        1,
        ("--width 0", "--experts 2,1"),
    ),
    "adapters": (
        f"--model MAMBA --batch 1 --length 4 --written 2 --methods lora_x --precision no {SHORT}",
        (adapters._Tried, "rows"),
        2,
        ("--methods lora_y", "--length 1"),
    ),
}


class Asked(Exception):
    """For a time."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("heads")
    save_model(harness.tiny_vit(), place / "VIT")
    heads = dict(num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
    LlamaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, **heads).save_pretrained(place / "LLAMA")
    sizes = dict(hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=3, vocab_size=40)
    MambaConfig(**sizes).save_pretrained(place / "MAMBA")
    return {folder.name: folder for folder in place.iterdir()}


@pytest.mark.parametrize("verb", TABLES)
def test_a_head_comes_before_the_first_row(
    verb: str,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def timed(*_: Any, **__: Any) -> Any:
        raise Asked

    said, (owner, name), lines, mistakes = TABLES[verb]
    words = ["bench", verb, *(str(folders.get(word, word)) for word in said.split())]
    capsys.readouterr()  # what libraries print when they are imported
    assert main(words) == 0
    whole = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(owner, name, timed)
    with pytest.raises(Asked):
        main(words)
    assert capsys.readouterr().out.splitlines() == whole[:lines] != whole
    with pytest.raises(Asked):
        main([*words, "--json"])
    assert capsys.readouterr().out == ""
    for mistake in mistakes:
        assert main([*words, *(str(folders.get(word, word)) for word in mistake.split())]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1, mistake
