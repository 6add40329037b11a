"""Which launch may continue which, and what it says: one line each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transmamba.errors import UserError
from transmamba.training.checkpoint import Progress
from transmamba.training.continuation import check_launch
from transmamba.training.strategies import Plain
from transmamba.training.strategies.fsdp2 import Fsdp2

LAUNCHERS = Path(__file__).parents[2] / "recipes/accelerate"


def strategy_named(name: str) -> Any:
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO needs pip install 'transmamba[deepspeed]'")
        from transmamba.training.strategies.zero import Zero

        return Zero(None, int(name[-1]))  # type: ignore[arg-type]
    kind: Any = Fsdp2 if name == "fsdp2" else Plain
    made = object.__new__(kind)  # no accelerator
    made.name = name
    return made


def launched(name: str, processes: int, micro_batch: int = 4) -> Progress:
    return Progress(strategy=name, processes=processes, micro_batch=micro_batch)


def said(saved: Progress, here: Progress) -> str | None:
    return check_launch(saved, here, strategy_named(here.strategy), Path("RUN"))


@pytest.mark.parametrize("name", ["plain", "ddp", "fsdp2", "zero2", "zero3"])
def test_as_it_was_nothing_is_said(name: str) -> None:
    assert said(launched(name, 2), launched(name, 2)) is None


@pytest.mark.parametrize(
    ("saved", "here"), [("plain", "ddp"), ("ddp", "plain"), ("ddp", "ddp"), ("fsdp2", "fsdp2")]
)
def test_another_number_is_said(saved: str, here: str) -> None:
    counts = (1 if saved == "plain" else 4, 1 if here == "plain" else 2)
    line = said(launched(saved, counts[0]), launched(here, counts[1]))
    assert line is not None and "\n" not in line
    assert f"on {counts[1]} process" in line and f"before on {counts[0]} process" in line
    assert "same items and draws" in line


def test_another_micro_batch_is_said_on_any_number() -> None:
    for processes in (1, 2):
        line = said(launched("ddp", 2, 4), launched("ddp", processes, 8))
        assert line is not None and "with 8 items at a time" in line and "with 4" in line
        assert "dropout and mixing draw otherwise from here" in line


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_zero_is_cut_for_its_number(name: str) -> None:
    with pytest.raises(UserError) as error:
        said(launched(name, 4), launched(name, 2))
    message = f"RUN was started with {name} on 4 processes, this is 2 processes: its checkpoints are cut"
    assert str(error.value).startswith(message) and "launch with --num_processes 4 again" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("saved", "here"),
    [("plain", "fsdp2"), ("ddp", "zero2"), ("fsdp2", "ddp"), ("zero2", "zero3"), ("zero3", "plain")],
)
def test_another_strategy_is_refused_by_name(saved: str, here: str) -> None:
    with pytest.raises(UserError, match=f"^RUN was started with {saved}, this is {here}: ") as error:
        said(launched(saved, 2), launched(here, 2))
    assert "\n" not in str(error.value)
    file = str(error.value).partition("recipes/accelerate/")[2].partition(" ")[0]
    assert (LAUNCHERS / file).is_file()
