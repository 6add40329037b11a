"""bench experts: rows, ratios, and equal work a token."""

from __future__ import annotations

import json

import pytest
import torch

from transmamba.bench.experts import _Dense, bench_experts
from transmamba.cli.main import main
from transmamba.errors import UserError
from transmamba.layers.experts import Experts, ExpertsShape


def test_rows_are_ratios_to_the_dense_one() -> None:
    sizes = dict(width=16, neurons=32, tokens=64, steps=2, device="cpu", precision="no")
    rows = list(bench_experts((2, 4), **sizes))  # type: ignore[arg-type]
    assert [(row["experts"], row["what"]) for row in rows] == [
        (count, what)
        for count in (2, 4)
        for what in ("dense", "grouped_mm", "grouped products", "with router")
    ]
    for row in rows:
        dense = next(r for r in rows if r["experts"] == row["experts"] and r["what"] == "dense")
        assert row["throughput"] == pytest.approx(dense["forward"] / row["forward"])
        assert row["throughput_backward"] == pytest.approx(dense["backward"] / row["backward"])


@pytest.mark.parametrize("each, gated", [(1, False), (2, True)])
def test_the_dense_one_has_the_work_of_a_token_s_experts(each: int, gated: bool) -> None:
    shape = ExpertsShape(
        width=16,
        neurons=32,
        count=4,
        each=each,
        normalised=each > 1,
        gated=gated,
        act="silu" if gated else "relu",
    )
    dense, bank = _Dense(shape), Experts(shape).experts
    active = sum(p.numel() for p in bank.parameters()) * each / shape.count
    assert sum(p.numel() for p in dense.parameters()) == active
    assert dense(torch.randn(3, 16)).shape == (3, 16)


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "bench experts --experts 2 --width 16 --neurons 32 --tokens 32 --steps 1 --device cpu --precision no"
    )
    assert main(words.split()) == 0
    assert "grouped products" in capsys.readouterr().out
    assert main([*words.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["tokens"] == 32
    for wrong in (["--experts", "1"], ["--experts", "two"], ["--width", "0"]):
        assert main([*words.split(), *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="experts 2: each token has 3 of 2 experts"):
        list(bench_experts((2,), each=3, device="cpu"))
