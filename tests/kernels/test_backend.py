"""Which path runs, what is said about it, and what the package needs."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transmamba_kernels
from transmamba_kernels import backend, causal_conv1d


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    backend._log.cache_clear()


def convolve() -> torch.Tensor:
    return causal_conv1d(torch.ones(1, 3, 2), torch.ones(2, 2))


def test_says_once_which_path_runs(caplog):
    with caplog.at_level(logging.INFO, "transmamba_kernels"):
        convolve()
        convolve()
    assert [r.getMessage() for r in caplog.records] == [
        "causal_conv1d on cpu: path 'cpu' (the fast PyTorch path, the best there is for this device)"
    ]


@pytest.mark.parametrize("path", backend.PATHS)
def test_environment_forces_a_path(monkeypatch, caplog, path):
    called = []

    def run(name: str):
        def convolve(x, **_):
            called.append(name)
            return x, None

        return convolve

    package = sys.modules["transmamba_kernels.causal_conv1d"]
    for name in ("reference", "cpu"):
        monkeypatch.setattr(getattr(package, name), "causal_conv1d", run(name))
    monkeypatch.setattr(package, "gpu", SimpleNamespace(causal_conv1d=run("triton")), raising=False)
    monkeypatch.setattr(backend, "_obstacle", lambda *_: None)
    monkeypatch.setenv(backend.VARIABLE, path)
    with caplog.at_level(logging.INFO, "transmamba_kernels"):
        convolve()
    assert called == [path]
    assert f"forced by {backend.VARIABLE}={path}" in caplog.text


def test_unknown_path_is_refused(monkeypatch):
    monkeypatch.setenv(backend.VARIABLE, "gpux")
    with pytest.raises(
        ValueError, match="TRANSMAMBA_KERNELS='gpux' names no path; write one of reference, cpu"
    ):
        convolve()


@pytest.mark.parametrize(
    ("dtype", "has", "says"),
    [
        (torch.float64, True, "an input is float64, and the Triton kernels compute in float32"),
        (torch.float32, False, "triton is not installed"),
        (torch.float32, True, "the inputs are on cpu, Triton needs a CUDA device"),
    ],
)
def test_forced_triton_that_cannot_run_is_refused(monkeypatch, dtype, has, says):
    monkeypatch.setenv(backend.VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "_has_triton", lambda: has)
    with pytest.raises(ValueError) as error:
        causal_conv1d(torch.ones(1, 3, 2, dtype=dtype), torch.ones(2, 2))
    assert f"TRANSMAMBA_KERNELS=triton cannot run causal_conv1d: {says}" in str(error.value)


def test_needs_torch_alone_and_shadows_nothing():
    root = Path(transmamba_kernels.__file__).parents[1]
    assert not (root / "__init__.py").exists(), "would shadow the package `kernels` of Hugging Face"
    code = (
        "import sys, torch; before = set(sys.modules); import transmamba_kernels\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "assert new <= {'transmamba_kernels', 'torch'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(root)})
