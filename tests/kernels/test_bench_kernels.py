"""The benchmark runs where there is no GPU and no peer, and counts bytes rightly."""

from __future__ import annotations

import json
import types

import fresh_process
import pytest
import torch
from transmamba_kernels import bench
from transmamba_kernels.bench import cases, peers, report, timing

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    """Every operator at a size that takes milliseconds."""
    small = {
        "selective_scan": (2, 8, 5, 4),
        "bidirectional_scan": (2, 8, 5, 4),
        "ssd_scan": (2, 6, 2, 4, 8),
        "bidirectional_ssd": (2, 6, 2, 8),
        "causal_conv1d": (2, 6, 8, 4),
        "bidirectional_conv1d": (2, 6, 8, 4),
        "selective_state_update": (2, 8, 4),
        "vim_block": (1, 8, 5, 4),
        "ssd_state_update": (2, 2, 4, 8),
        "softmax_kl": (4, 64),
        "gated_product": (2, 8, 6),
        "mamba2_step": (2, 4, 4, 8, 2),
        "normed_gated_product": (2, 8, 6),
        "rms_norm": (4, 64),
        "silu_mul": (4, 64),
        "skinny_linear": (2, 8, 6),
    }
    assert small.keys() == cases.OPS.keys()
    monkeypatch.setattr(cases, "OPS", {op: (cases.OPS[op][0], [], [shape]) for op, shape in small.items()})
    monkeypatch.setattr("transmamba_kernels.bench.measure.describe", lambda device: MACHINE)


MACHINE = {"device": "a machine", "copy_gb_per_s": 10.0, "exp2_per_ns": 1.0}


def test_all_operators_with_files(tiny, tmp_path):
    said: list[str] = []
    result = bench.bench_kernels(quick=True, out=tmp_path, device="cpu", say=said.append)
    assert result == json.loads((tmp_path / "kernels.json").read_text())
    assert (tmp_path / "kernels.png").stat().st_size > 0
    rows = {(row["op"], row["implementation"]): row for row in result["results"]}
    assert not [row["error"] for row in rows.values() if "error" in row]
    of_a_token = {"gated_product", "mamba2_step", "normed_gated_product", "rms_norm", "silu_mul"}
    of_a_token |= {"skinny_linear", "selective_state_update", "ssd_state_update"}
    for op in cases.OPS:
        row = rows[op, "transmamba_kernels"]
        assert row["inference_ms"] > 0
        assert ("backward_ms" in row) == (op not in of_a_token)
    assert ("bidirectional_ssd", "torch attention") in rows
    assert "selective_scan" in "\n".join(said)


def test_shares_follow_from_bytes_and_time(tiny):
    (row,) = bench.bench_kernels(["selective_state_update"], device="cpu", quick=True)["results"]
    seconds = row["inference_ms"] / 1e3
    assert row["copy_share_inference"] == pytest.approx(row["inference_bytes"] / seconds / 10e9)
    assert row["exp2_share_inference"] == pytest.approx(2 * 8 * 4 / seconds / 1e9)


def test_one_that_fails_does_not_stop_the_rest(tiny, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", broken)
    ours, attention = bench.bench_kernels(["bidirectional_ssd"], device="cpu", quick=True)["results"]
    assert attention["error"] == "RuntimeError: out of memory" and ours["forward_ms"] > 0
    assert "out of memory" in report.case_table([ours, attention])


def test_wrong_choices_are_named(tiny):
    with pytest.raises(ValueError, match="no operator 'scan'; write some of selective_scan"):
        bench.bench_kernels(["scan"], device="cpu")
    with pytest.raises(ValueError, match="none of the labels has L7"):
        bench.bench_kernels(shapes=["L7"], device="cpu")
    with pytest.raises(SystemExit):
        bench.main(["--ops", "scan", "--device", "cpu"])


def test_shapes_are_picked_by_a_word_or_the_label():
    def labels(*shapes: str) -> list[str]:
        found = cases.cases(torch.device("cuda"), torch.bfloat16, ["selective_scan"], list(shapes), False)
        return [case.label for case in found]

    assert labels("L197") == ["B64 D768 L197 N16", "B128 D384 L197 N16"]
    assert labels("B64 D768 L197 N16") == ["B64 D768 L197 N16"]
    assert len(labels()) == 8


def test_saved_bytes_leave_the_inputs_out():
    x = torch.ones(10, requires_grad=True)
    assert timing.saved_bytes(lambda: x * x, [x]) == 0
    assert timing.saved_bytes(lambda: (x + 1).exp(), [x]) == 40


def test_slow_calls_get_fewer_rounds(monkeypatch):
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    assert timing.Timer(CPU).medians({"a": lambda: None}, 50)["a"][1] == timing.FEWEST
    monkeypatch.setattr(timing, "BUDGET_S", 1e9)
    assert timing.Timer(CPU).medians({"a": lambda: None}, 50)["a"][1] == 50


def test_peer_is_found_behind_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    package = tmp_path / "broken_peer"
    (package / "ops").mkdir(parents=True)
    (package / "__init__.py").write_text("import a_missing_extension")
    (package / "ops" / "__init__.py").write_text("VALUE = 3")
    monkeypatch.syspath_prepend(tmp_path)
    found = peers.module("broken_peer.ops")
    assert isinstance(found, types.ModuleType) and found.VALUE == 3 and "broken_peer.ops" not in peers.absent
    assert peers.module("no_such_peer.ops") is None and "No module" in peers.absent.pop("no_such_peer.ops")


def test_runs_without_transmamba(tmp_path):
    code = (
        "import sys; sys.modules['transmamba'] = None; sys.modules['matplotlib'] = None\n"
        "from transmamba_kernels.bench import main\n"
        f"main(['--ops', 'causal_conv1d', '--quick', '--device', 'cpu', '--out', {str(tmp_path)!r}])"
    )
    done = fresh_process.run(code)
    assert done.returncode == 0, done.stderr
    assert "no plot: matplotlib is not installed" in done.stdout and (tmp_path / "kernels.json").is_file()
