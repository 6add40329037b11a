"""Adapters timed beside full tuning: that what is timed is what it says, and what the rows say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig

from transmamba.bench import adapters
from transmamba.bench.adapters import COLUMNS, FULL, SHAPES, Workload, _Tried, bench_adapters
from transmamba.cli.main import main
from transmamba.errors import UserError
from transmamba.peft import MambaPeftConfig

CPU = torch.device("cpu")
SMALL = Workload(batch=2, length=6, written=3, steps=1, precision="no")
METHODS = ["lora_x", "conv1d+additional_scan", "state_offset_h"]


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shape")
    sizes = dict(hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=3, vocab_size=40)
    MambaConfig(**sizes).save_pretrained(folder)
    return str(folder / "config.json")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every kind is run once after its `before`, and said to take seconds of its own."""
    kinds_timed: list[list[str]] = []

    def interleaved(kinds: Any, steps: int, device: Any, *, warmup: int, before: Any) -> dict[str, float]:
        kinds_timed.append(list(kinds))
        for name, run in kinds.items():
            before[name]()
            run()
        seconds = {FULL: 1.0, "lora_x": 1.05, "conv1d+additional_scan": 1.25, "state_offset_h": 1.2}
        return {name: seconds[name] for name in kinds}

    monkeypatch.setattr(adapters, "interleaved", interleaved)
    return kinds_timed


def test_rows_say_what_was_timed(shape: str, said: list[list[str]]) -> None:
    rows = {row["method"]: row for row in bench_adapters(shape, METHODS, SMALL, device="cpu")}
    assert list(rows) == [FULL, *METHODS] and all(set(row) == {*COLUMNS} for row in rows.values())
    assert said[:2] == [[FULL, *METHODS]] * 2 and said[2:] == [["lora_x"], ["conv1d+additional_scan"]]
    base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shape))
    assert rows[FULL]["trained"] == sum(p.numel() for p in base.parameters()) and rows[FULL]["share"] == 1
    for name in METHODS:
        alone = get_peft_model(
            AutoModelForCausalLM.from_config(base.config), MambaPeftConfig(methods=name.split("+"))
        )
        assert rows[name]["trained"] == sum(p.numel() for p in alone.parameters() if p.requires_grad)
    assert [row["time"] for row in rows.values()] == [1.0, 1.05, 1.25, 1.2]
    assert rows["lora_x"]["speed"] == pytest.approx(1 / 1.05) and rows[FULL]["speed"] is None
    # 1 / 1.05 is above 0.95; more states may take 1.3 of the time, but 1 / 1.25 is too slow; 1.2 is too long
    assert [row["holds"] for row in rows.values()] == [None, True, False, False]
    assert rows["lora_x"]["merge_ms"] == 1050 and rows["state_offset_h"]["merge_ms"] is None
    assert all(row["memory_mb"] is None for row in rows.values())


@pytest.mark.usefixtures("said")
def test_each_kind_trains_its_own_and_shares_the_base(shape: str) -> None:
    model = adapters._made(shape, CPU)
    tried = _Tried(model, {name: name.split("+") for name in METHODS}, SMALL, CPU)
    named = dict(tried.wrapped.named_parameters())
    inside = {id(p) for p in tried.base.parameters()}
    assert inside <= {id(p) for p in named.values()}, "one set of weights"
    for kind in (FULL, *METHODS):
        before = {name: p.detach().clone() for name, p in named.items()}
        step = tried._step(kind)
        tried._activate(kind)
        step()
        moved = {name for name, p in named.items() if not torch.equal(p, before[name])}
        if kind == FULL:
            assert moved and all(id(named[name]) in inside for name in moved)
        else:
            own = tried.adapters[kind]
            assert moved and all(f".{own}." in name for name in moved)
    tried._activate("lora_x")
    with torch.no_grad(), tried.wrapped.disable_adapter():
        tried.base.eval(), tried.wrapped.eval()
        assert torch.equal(tried.base(tried.text).logits, tried.wrapped(tried.text).logits)
    assert tried._writing("lora_x")().shape == (1, SMALL.length + SMALL.written)


def test_a_step_is_checked_once_an_adapter(shape: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In turns, too: what the check walks through is not timed."""
    tried = _Tried(adapters._made(shape, CPU), {"lora_x": ["lora_x"], "a": ["a"]}, SMALL, CPU)
    tried._steps()
    assert capfd.readouterr().err.count("parameters are trained") == 2


def test_the_bars_shapes_are_those_of_the_checkpoints() -> None:
    sizes = {"mamba-130m": 0.129e9, "mamba-1.4b": 1.37e9, "mamba2-1.3b": 1.34e9}
    for name, wanted in sizes.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[name]))
        model.tie_weights()
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(wanted, rel=0.05)


@pytest.mark.usefixtures("said")
def test_the_command(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", shape, "--batch", "1", "--length", "4", "--written", "2", "--precision", "no"]
    assert main(["bench", "adapters", *options, "--methods", "lora_x", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == [FULL, "lora_x"]
    assert main(["bench", "adapters", *options, "--methods", "lora_x"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 rows of 4 tokens" in lines[0] and len({len(line) for line in lines[1:]}) == 1
    for given, message in (
        (["--methods", "lora_y"], "'lora_y'"),
        (["--methods", ""], "--methods is empty"),
        (["--length", "1"], "--length is 1; write at least 2"),
    ):
        assert main(["bench", "adapters", *options, *given]) == 2
        assert message in capsys.readouterr().err


def test_a_workload_is_checked() -> None:
    with pytest.raises(UserError, match="--batch is 0; write at least 1"):
        Workload(batch=0)
