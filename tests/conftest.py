"""Models small enough for a CPU, with parameters that no initialisation would give.

Fresh models have zero biases, unit norms and tiny embeddings, and would hide every mistake with them; so all
parameters here are random numbers of a healthy size.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from randomised import randomise_
from torch import Tensor, nn

# while files are collected little becomes garbage, and there is ever more to search for it
gc.disable()
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED_DATA = Path(os.environ.get("TRANSMAMBA_DATA", Path(__file__).parents[2] / "shared" / "data"))

# 17 tokens of 64 channels: a gray 8 x 8 picture in patches of 2
TINY = dict(
    img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=3, num_heads=4, num_classes=10, pretrained=False
)


@pytest.fixture(autouse=True, scope="module")
def imports_are_no_garbage() -> None:
    """What is there before a file begins is not searched for garbage: each search went through all that was
    imported, 0.3 s of a run of one second, which has three."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # extensions complain of what is left at exit


@pytest.fixture(autouse=True, scope="session")
def no_report() -> None:
    """A run in this process draws no report, which takes longer than its training; see `report_of_a_run`."""
    if "transmamba.runs.run" in sys.modules:
        sys.modules["transmamba.runs.run"].write_report = lambda folder: None  # type: ignore[attr-defined]


@pytest.fixture
def report_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw their report, as users' do."""
    import transmamba.runs.run
    from transmamba.reporting.report import write_report

    monkeypatch.setattr(transmamba.runs.run, "write_report", write_report)


def timm_vit(seed: int = 0, name: str = "vit_tiny_patch16_224", **kwargs: Any) -> nn.Module:
    """A tiny timm model in evaluation mode, all its parameters random."""
    import timm

    model = timm.create_model(name, **{**TINY, **kwargs})
    randomise_(model, seed)
    return model.eval()


@pytest.fixture
def make_vit() -> Callable[..., nn.Module]:
    return timm_vit


@pytest.fixture
def randomise() -> Callable[..., None]:
    return randomise_


@pytest.fixture
def make_teacher() -> Callable[..., Any]:
    """make_teacher(**timm kwargs): the `Teacher` of a tiny random timm ViT."""
    from transmamba import adapt_teacher

    return lambda **kwargs: adapt_teacher(timm_vit(**kwargs))


@pytest.fixture
def gray_images() -> Tensor:
    """(3, 1, 8, 8)"""
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared data sets and checkpoints; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent; set TRANSMAMBA_DATA to the folder of shared data")
    return SHARED_DATA
