"""`transmamba distill`: what it passes on, how a stopped run says how to go on, and whose mistakes are one
line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from transmamba_kernels import backend

from transmamba.cli import mistakes
from transmamba.errors import UserError
from transmamba.training.interrupted import Interrupted

Command = Callable[..., Any]


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """running(f): a recipe is run by f."""
    return lambda run: monkeypatch.setattr("transmamba.runs.run.run", run)


@pytest.mark.parametrize(
    ("flag", "checks"), [([], True), (["--check-data"], True), (["--no-check-data"], False)]
)
def test_whether_data_are_checked(
    flag: list[str], checks: bool, command: Command, recipe: Path, running: Callable[..., None]
) -> None:
    found: dict[str, Any] = {}

    def run(*_: Any, **options: Any) -> None:
        found.update(options)
        raise UserError("that is enough")

    running(run)
    command("distill", "--config", recipe, *flag).refuses("that is enough")
    assert found["check_data"] is checks and found["overwrite"] is False


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_a_stopped_run_says_by_whom_and_how_to_go_on(
    name: str,
    code: int,
    command: Command,
    recipe: Path,
    running: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise Interrupted(name, code)

    running(run)
    monkeypatch.setattr(
        sys, "orig_argv", ["/x/bin/python3", "/x/bin/transmamba", "distill", "--overwrite", "a b=1"]
    )
    done = command("distill", "--config", recipe, "--overwrite")
    assert done.code == code
    assert done.out == f"stopped by {name}, and saved; resume with: transmamba distill 'a b=1'\n"


def test_the_command_again_is_the_launcher_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of accelerate does not see on how many processes it is to be started again."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    launcher = [
        "/x/bin/python",
        "/x/bin/accelerate",
        "launch",
        "--num_processes",
        "8",
        "distill.py",
        "--overwrite",
    ]
    monkeypatch.setattr(mistakes, "_words_of", lambda process: launcher if process == os.getppid() else [])
    assert mistakes.command_again() == "accelerate launch --num_processes 8 distill.py"
    monkeypatch.setattr(mistakes, "_words_of", lambda _: ["/sbin/init"])
    assert mistakes.command_again() is None


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="the system does not show command lines")
def test_a_command_line_is_read_word_by_word() -> None:
    script = "print('up', flush=True); input()"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", script, "a b", ""], **pipes) as child:
        assert child.stdin is not None and child.stdout is not None and child.stdout.readline() == "up\n"
        words = mistakes._words_of(child.pid)
        child.stdin.write("\n")
    assert words == [sys.executable, "-c", script, "a b", ""]


def test_a_script_is_started_again_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(
        sys, "orig_argv", ["python", "-u", "recipes/distill.py", "--config", "a.yaml", "--overwrite"]
    )
    assert mistakes.command_again() == "python -u recipes/distill.py --config a.yaml"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/x/metrics.jsonl"),
            "runs/x/metrics.jsonl: Permission",
        ),
        (OSError(errno.EROFS, "Read-only file system", "runs/x"), "runs/x: Read-only file system; "),
        (SafetensorError("I/O error: Read-only file system (os error 30)"), "Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk full: "),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line(
    error: Exception, says: str, command: Command, recipe: Path, running: Callable[..., None]
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    running(run)
    command("distill", "--config", recipe).refuses(says)


def test_torn_results_are_one_line(command: Command, recipe: Path, tmp_path: Path) -> None:
    short = ("stages.0.steps=1", "stages.1.steps=1")
    assert command("distill", "--config", recipe, *short).code == 0
    results = tmp_path / "run" / "results.json"
    results.write_text(results.read_text()[:50])
    command("distill", "--config", recipe, *short).refuses("results.json", "cannot be read")
    command("report", tmp_path / "run").refuses("results.json", "cannot be read")


def test_the_kernels_paths_are_their_own() -> None:
    """Written down twice, so that help need not import torch."""
    assert (mistakes.KERNELS, mistakes.KERNEL_PATHS) == (backend.VARIABLE, backend.PATHS)


def test_words_that_mean_nothing(command: Command, recipe: Path) -> None:
    (
        command("distill", "--config", recipe, "--overwrit").refuses("mean --overwrite?"),
        "written out: see command_again",
    )
    command("distill", "--config", recipe, "--owerwrite").refuses(
        "--owerwrite: transmamba distill", "mean --overwrite?"
    )
    command("bench", "inference", "foo=1").refuses("foo=1: options are of an open_clip model")
    command("bench", "recip").refuses("unknown verb 'recip'; did you mean 'recipe'?")
