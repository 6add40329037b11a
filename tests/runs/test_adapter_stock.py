"""A recipe's `adapter.stock`, PEFT's own to compare with; and what cannot be merged, beside its student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import harness
import peft
import pytest
import torch

from transmamba.ecosystems.find import load_model, save_model
from transmamba.errors import UserError
from transmamba.runs.recipe import Recipe

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, and a student that is to be adapted."""
    folder = tmp_path_factory.mktemp("adapters")
    harness.tiny_recipe(folder)
    save_model(harness.tiny_student(), folder / "student")
    return folder


def recipe(place: Path, run: Path, model: str, **adapter: Any) -> Recipe:
    changes: dict[str, Any] = dict(
        output_dir=str(run), adapter=adapter, init=None, student=dict(name="saved", model=str(place / model))
    )
    changes["stages"] = [dict(name="tune", losses=["cross_entropy"], steps=3, lr=3e-3)]
    return harness.tiny_recipe(place, **changes)


def stock(place: Path, run: Path, model: str, **options: Any) -> Recipe:
    return recipe(place, run, model, stock=options)


@pytest.mark.parametrize(
    ("kind", "model", "targets"),
    [("lora", "student", ["in_proj", "out_proj"]), ("dora", "teacher", ["qkv"])],
)
def test_stock_peft_is_trained_merged_and_loaded_by_stock_peft(
    place: Path, tmp_path: Path, kind: str, model: str, targets: list[str]
) -> None:
    run = tmp_path / "run"
    results = harness.run_quietly(stock(place, run, model, kind=kind, targets=targets, r=2))
    base = load_model(place / model)
    layers = [m for n, m in base.named_modules() if n.rpartition(".")[2] in targets]
    trained = sum(2 * sum(m.weight.shape) + (kind == "dora") * len(m.weight) for m in layers)
    assert results["adapter"]["trained"] == trained and results["adapter"]["merge_seconds"] > 0
    with torch.no_grad():
        plain = base(IMAGES)
        wanted = peft.PeftModel.from_pretrained(base, run / "adapter").eval()(IMAGES)
        assert (wanted - plain).abs().max() > 1e-5
        torch.testing.assert_close(load_model(run)(IMAGES), wanted, atol=1e-5, rtol=1e-5)


def test_stock_peft_that_nothing_reaches_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'qkv' is no linear layer; known: .*in_proj"):
        harness.run_quietly(stock(place, tmp_path / "a", "student", targets=["qkv"]))
    with pytest.raises(UserError, match="no gradient reaches any lora_A or lora_B"):
        harness.run_quietly(stock(place, tmp_path / "b", "student", targets=["dt_proj"]))
    with pytest.raises(UserError, match="methods: given beside stock"):
        recipe(place, tmp_path / "c", "student", methods=["a"], stock=dict(targets=["in_proj"]))


def test_more_states_in_some_layers_stay_beside_the_student(place: Path, tmp_path: Path) -> None:
    """A model has one state size: what cannot be merged is saved as it is, and the run ends well."""
    layers = [0]
    run = tmp_path / "run"
    results = harness.run_quietly(recipe(place, run, "student", methods=["additional_scan"], layers=layers))
    assert "merge_seconds" not in results["adapter"]
    again, base = load_model(run), load_model(place / "student")
    assert hasattr(again, "tuned")
    with torch.no_grad():
        wanted = peft.PeftModel.from_pretrained(base, run / "adapter").eval()(IMAGES)
        torch.testing.assert_close(again(IMAGES), wanted, atol=1e-5, rtol=1e-5)
