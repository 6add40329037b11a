"""`transmamba convert`, `list` and `report`: what their words become."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transmamba.config.registry import (
    FUNCTIONS,
    LOSSES,
    PAIRS,
    QUESTIONS,
    READERS,
    STUDENTS,
    TASKS,
    TEACHERS,
    TEXTS,
)
from transmamba.subcloning.report import Report
from transmamba.subcloning.subclone import SubcloneConfig

Command = Callable[..., Any]
SYNTHETIC = ["--data", "synthetic", "data.num_train=12", "data.num_classes=3", "data.size=8"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What convert_checkpoint is given."""
    found: dict[str, Any] = {}

    def convert_checkpoint(teacher: str, out: Path, **options: Any) -> Report:
        found.clear()
        found.update(options, teacher=teacher, out=out)
        return Report(total=1)

    monkeypatch.setattr("transmamba.subcloning.checkpoint.convert_checkpoint", convert_checkpoint)
    return found


@pytest.mark.parametrize(
    ("words", "init"),
    [
        ([], {"importance": "uniform"}),
        (["--fold", "--layers", "half"], {"importance": "uniform", "fold": True, "layers": "half"}),
        (["--average", *SYNTHETIC], {"average": True, "mimic": True}),
        (["init.fold=true", "init.layers=3"], {"importance": "uniform", "fold": True, "layers": 3}),
        (
            ["init.calibration_images=64", "--layers", "3", *SYNTHETIC],
            {"calibration_images": 64, "layers": 3},
        ),
        (["init.importance=change", "init.base=x"], {"importance": "change", "base": "x"}),
    ],
)
def test_words_say_what_init_of_a_recipe_would(
    words: list[str], init: dict[str, Any], command: Command, asked: dict[str, Any]
) -> None:
    assert command("convert", "teacher", "out", *words).code == 0
    assert asked["init"] == SubcloneConfig(**init)


def test_other_words_are_the_reader_s_and_the_student_s(command: Command, asked: dict[str, Any]) -> None:
    words = ["gate_bias=true", *SYNTHETIC, "depth=2", "init.fold=true"]
    assert command("convert", "teacher", "out", *words).code == 0
    assert asked["options"] == {"gate_bias": True, "depth": 2}
    assert asked["data"].data == READERS["synthetic"](num_train=12, num_classes=3, size=8)
    assert "architecture" not in asked
    assert command("convert", "weights.pth", "out", "--architecture", "vit_tiny_patch16_224").code == 0
    assert asked["architecture"] == "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["init.fodl=true"], "init.fodl: unknown key; did you mean 'fold'?"),
        (["init.rotate=pca"], "init.rotate: unknown key, deleted: it lost in our own measurements"),
        (["init.layers=-1"], "init.layers: -1; write 'all', 'half' or a number"),
        (["--fold", "init.fold=false"], "init.fold=false: --fold says that already"),
        (["init.fold"], "init.fold: write key=value"),
        (["init.average=true"], "average needs the identity convolutions of mimic"),
        (["data.size=8"], "data.size=8 is the reader's, and there is none"),
    ],
)
def test_words_that_mean_nothing(
    words: list[str], says: str, command: Command, asked: dict[str, Any]
) -> None:
    command("convert", "teacher", "out", *words).refuses(says)
    assert not asked


def test_list_describes_every_part_in_a_line(command: Command) -> None:
    lines = command("list").out.splitlines()
    for registry in (TEACHERS, STUDENTS, LOSSES, TASKS, READERS, PAIRS, TEXTS, QUESTIONS, FUNCTIONS):
        for name in registry:
            described = [line for line in lines if line.startswith(f"  {name} ")]
            assert described and len(described[0].split()) > 2, name
    losses = command("list", "losses").out
    assert losses.startswith("losses:\n") and "temperature" in losses and "vim_tiny" not in losses
    assert "vim_tiny_patch16_224" in command("list", "students").out
    command("list", "loss").refuses("unknown kind 'loss'")


def test_report_of_one_run_and_of_several(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setattr(
        "transmamba.reporting.report.write_report", lambda run, output: asked.append((run, output)) or "page"
    )
    monkeypatch.setattr(
        "transmamba.reporting.comparison.write_comparison",
        lambda runs, output: asked.append((runs, output)) or "page",
    )
    for words in ([one], [one, "--output", "x.html"], [one, two], [one, two, "--output", "x.html"]):
        assert command("report", *words).out == "page\n"
    page = Path("x.html")
    assert asked == [(one, None), (one, page), ([one, two], None), ([one, two], page)]
    monkeypatch.setattr("transmamba.reporting.comparison.compared", lambda runs: {"runs": len(runs)})
    assert json.loads(command("report", one, two, "--json").out) == {"runs": 2}
    command("report", one, two, "--json", "--output", "x.html").refuses("--json writes no page")


def test_kernels_are_not_timed_where_there_is_no_gpu(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    command("bench", "kernels", "--quick", "--device", "cuda:99").refuses(
        "device 'cuda:99' cannot be used here"
    )
