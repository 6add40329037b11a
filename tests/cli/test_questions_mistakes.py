"""Mistakes with questions about pictures on the command line: one line each, and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_language import llama_folder
from small_llava import llava_folder

from transmamba.cli.main import main

SCENES = ("--device", "cpu", "--data", "scenes", "side=16", "count_train=8", "count_test=4")
CLASSES = ("--device", "cpu", "--data", "synthetic", "num_classes=2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    llava_folder(folder / "llava", context=160)
    llava_folder(folder / "full", context=160, strategy="full")
    llama_folder(folder / "words", context=160)
    (folder / "bare").mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / "bare" / name).write_bytes((folder / "llava" / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    ("model", "task", "options", "said"),
    [
        ("words", "questions", SCENES, "reads no pictures; write task.pictures: none, or choose a LLaVA"),
        ("bare", "questions", SCENES, "needs a LLaVA with its tokenizer beside it (tokenizer.json)"),
        ("llava", "questions", (*SCENES, "task.context=50"), "write task.context: "),
        ("llava", "questions", (*SCENES, "task.answer_tokens=150"), "ask for an answer of at most "),
        ("llava", "questions", (*SCENES, "task.writting=never"), "did you mean 'writing'?"),
        ("llava", "questions", (*SCENES, "--teacher", "full"), "teacher's tokens of a picture: 5, the data "),
        ("llava", "image_classification", CLASSES, "predicts words and has no classes; the task questions"),
        ("words", "image_classification", CLASSES, "predicts words and has no classes"),
    ],
)
def test_it_is_one_line(
    made: Path,
    model: str,
    task: str,
    options: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(made)
    assert main(["evaluate", model, "--task", task, *options]) == 2
    found = capfd.readouterr().err
    assert said in found and "Traceback" not in found


def test_who_reads_a_part_alone_sees_no_traceback() -> None:
    import subprocess
    import sys

    code = "from transmamba.cli.mistakes import guarded\nimport sys\n"
    code += "sys.exit(guarded(lambda: [print('line') for _ in range(100_000)] and 0))"
    command = f'{sys.executable} -c "{code}" | head -1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.split() == ["line", "141"] and done.stderr == ""
