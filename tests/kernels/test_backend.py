"""Which path runs, what is said about it, and what the package needs."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transmamba_kernels
from transmamba_kernels import backend, causal_conv1d


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    backend._say.cache_clear()


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
    for name in backend.PATHS:
        module = sys.modules[f"transmamba_kernels.causal_conv1d.{name}"]
        monkeypatch.setattr(module, "causal_conv1d", lambda *_, name=name: called.append(name))
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


def test_needs_torch_alone_and_shadows_nothing():
    root = Path(transmamba_kernels.__file__).parents[1]
    assert not (root / "__init__.py").exists(), "would shadow the package `kernels` of Hugging Face"
    code = (
        "import sys, torch; before = set(sys.modules); import transmamba_kernels\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "assert new <= {'transmamba_kernels', 'torch'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(root)})
