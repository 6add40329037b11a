"""`trainer.compile`: the same run, its layers compiled one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from transmamba.errors import UserError
from transmamba.training.stage import TrainerConfig
from transmamba.training.strategies.choose import check_carried


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Classes of what is compiled; traced forward and backward, without the minutes of a compiler."""
    compiled: list[str] = []
    plain = nn.Module.compile

    def noted(self: nn.Module, **options: Any) -> None:
        compiled.append(type(self).__name__)
        plain(self, backend="aot_eager_decomp_partition", **options)

    monkeypatch.setattr(nn.Module, "compile", noted)
    torch._dynamo.reset()
    return compiled


@pytest.mark.parametrize(
    "student", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("vim", "ssd_vit")), "timm"]
)
def test_a_compiled_run_is_the_run(student: str, tmp_path: Path, traced: list[str]) -> None:
    found = []
    models = {
        "vim": dict(name="vim", model="vim_micro_patch2_8", kwargs=dict(harness.VIM)),
        "ssd_vit": dict(name="ssd_vit"),
        "timm": dict(name="timm", model="vit_tiny_patch16_224", kwargs=dict(harness.TEACHER)),
    }
    for compiled in (False, True):
        changes: dict[str, Any] = dict(student=models[student], trainer__compile=compiled)
        if student == "timm":  # no student of towers: it is trained from labels, and compiled whole
            labels = dict(name="labels", losses=["cross_entropy"], steps=5, lr=3e-3)
            changes |= dict(init=None, stages=[labels])
        recipe = harness.tiny_recipe(tmp_path, output_dir=str(tmp_path / str(compiled)), **changes)
        results = harness.without_timing(harness.run_quietly(recipe))
        found.append((results, load_file(tmp_path / str(compiled) / "student" / "model.safetensors")))
    assert traced, "something was compiled"
    assert student != "timm" or set(traced) == {"VisionTransformer"}
    (plain, before), (made, after) = found
    assert before.keys() == after.keys(), "names are as they were"
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-2, atol=5e-4)
    assert made["student"]["top1"] == plain["student"]["top1"]


def test_what_it_does_not_go_with_is_refused() -> None:
    with pytest.raises(ValueError, match="compile false"):
        TrainerConfig(compile=True, cuda_graphs=True)
    with pytest.raises(UserError, match=r"trainer\.compile=false"):
        check_carried("zero3", TrainerConfig(compile=True))
    check_carried("fsdp2", TrainerConfig(compile=True))
