"""Mistakes with questions about pictures on the command line: one line each, and what to write instead."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from small_language import llama_folder
from small_llava import llava_folder

import transmamba
from transmamba.cli.main import main
from transmamba.config.registry import QUESTIONS

ROOT = Path(__file__).parents[2]

SCENES = ("--device", "cpu", "--data", "scenes", "side=16", "count_train=8", "count_test=4")
CLASSES = ("--device", "cpu", "--data", "synthetic", "num_classes=2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    llava_folder(folder / "llava", context=160)
    llama_folder(folder / "words", context=160)
    (folder / "bare").mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / "bare" / name).write_bytes((folder / "llava" / name).read_bytes())
    (folder / "q.jsonl").write_text('{"question": "what?", "answer": "red"}\n')
    for name, options in (("hybrid", {}), ("own", {"cross": {"num_heads": 2, "state_size": 4}})):
        student, _ = transmamba.convert(folder / "llava", "llava", decoder={"kind": "hybrid"}, **options)
        transmamba.save_student(student, folder / name)
    return folder


@pytest.mark.parametrize(
    ("model", "task", "options", "said"),
    [
        ("words", "questions", SCENES, "reads no pictures; write task.pictures: none, or choose a LLaVA"),
        ("bare", "questions", SCENES, "needs a LLaVA with its tokenizer beside it (tokenizer.json)"),
        ("llava", "questions", (*SCENES, "task.context=50"), "write task.context: "),
        ("llava", "questions", (*SCENES, "task.answer_tokens=150"), "ask for an answer of at most "),
        ("llava", "questions", (*SCENES, "task.writting=never"), "did you mean 'writing'?"),
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


CONFIG = "recipes/configs/llava_to_mamba_debug.yaml"
NO_RECIPE = ("teacher_recipe=null", "student.decoder.attention_layers=[1]")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("teacher.model=OTHER",),
            "write the same folder in both, or teacher_recipe=null for a teacher that",
        ),
        ((*NO_RECIPE, "teacher.model=none"), "none': no such folder; write one that holds config.json"),
        (
            (*NO_RECIPE, "teacher.model=words"),
            "is a language model, and the teacher llava reads a LLaVA",
        ),
        ((*NO_RECIPE, "teacher.model=bare"), "needs a LLaVA with its tokenizer beside it (tokenizer.json)"),
        (
            (*NO_RECIPE, "teacher.name=causal_lm"),
            "is a LLaVA, and the teacher causal_lm reads a language model: write such a one",
        ),
        ((*NO_RECIPE, "teacher.model=hybrid"), "it has Mamba-2 in the place of attention, as a student has"),
        (
            (*NO_RECIPE, "teacher={name: causal_lm, model: own}"),
            "code of its own beside it, a student llava of ours",
        ),
        ((*NO_RECIPE, "student.cross.every=5"), "student.cross.every is 5, and the image tower has 2 layers"),
        (
            (*NO_RECIPE, "student.cross.num_heads=5"),
            "student.cross: width is 24; write a multiple of num_heads",
        ),
        (
            (*NO_RECIPE, "student.image.kind=kept"),
            "none that teacher and student share, for a tower that the student keeps has none",
        ),
        (
            (*NO_RECIPE, "task.data={name: jsonl, test: FILE}"),
            "error: reader jsonl was given no train split; write train: as well",
        ),
    ],
)
def test_a_recipe_that_cannot_be_run_is_one_line(
    made: Path, tmp_path: Path, words: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before anything is trained."""
    places = {name: str(made / name) for name in ("words", "bare", "hybrid", "own", "none")}
    options = [f"teacher.model={made / 'llava'}", f"output_dir={tmp_path / 'run'}", "task.data.count_train=8"]
    for word in words:
        for name, place in places.items():
            word = re.sub(rf"(model(?:=|: )){name}\b", rf"\g<1>{place}", word)
        options.append(word.replace("FILE", str(made / "q.jsonl")))
    assert main(["distill", "--config", str(ROOT / CONFIG), *options]) == 2
    found = capfd.readouterr().err
    assert said in found and "Traceback" not in found and "[y/N]" not in found
    assert not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("convert", "llava", "out", "--student", "vim", "image.kind=vim"),
            "is an option of a clip or a llava, not of vim; add --student {clip,llava}",
        ),
        (("convert", "llava", "out", "--student", "llava", "image.kind=vmi"), "did you mean 'vim'?"),
        (("convert", "llava", "out", "--student", "clip", "decoder.kind=hybrid"), "add --student llava"),
        (("convert", "llava", "out"), "write the student llava, with image.kind=vim"),
        (
            ("convert", "llava", "out", "--student", "hybrid_lm"),
            "in the student llava, by decoder.kind=hybrid",
        ),
        (
            ("generate-data", "llava", "a.jsonl", "--prompts", "text", "train=x"),
            "or --questions in the place of",
        ),
        (
            ("generate-data", "words", "a.jsonl", "--questions", "scenes"),
            "or write --prompts in the place of",
        ),
        (
            ("evaluate", "llava", "--data", "scenes"),
            "goes with --task image_text or --task questions",
        ),
        (
            ("evaluate", "llava", "--task", "questions", "--data", "q.jsonl"),
            "of a file of questions write --data jsonl test=FILE, or ",
        ),
        (("evaluate", "llava", "--device", "cuda", "--data", "digits"), "write cpu, for no GPU is found"),
    ],
)
def test_what_was_meant_is_said(
    made: Path,
    words: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(made)
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(list(words)) == 2
    found = capfd.readouterr().err
    assert said in found and "Traceback" not in found and not (made / "out").exists()


def test_a_part_s_options_are_written_with_dots(made: Path, tmp_path: Path) -> None:
    options = ("image.kind=vim", "decoder.kind=hybrid", "cross.num_heads=2", "cross.state_size=4")
    assert main(["convert", str(made / "llava"), str(tmp_path / "s"), "--student", "llava", *options]) == 0
    found = transmamba.inspect(tmp_path / "s")
    assert found.converted == ("image", "decoder") and found.parts["cross"]["heads"] == 2


def test_what_a_file_of_questions_has_beside_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"question": "what?", "answer": "red", "picture": "0.png", "id": 3}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    source = QUESTIONS["jsonl"](test=str(tmp_path / "q.jsonl")).build("test")
    assert not source.item(0).pictures
    wanted = f"{tmp_path / 'q.jsonl'}: not read of its rows: picture, id; what is read is question, answers, "
    assert wanted in caplog.text
    caplog.clear()
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "what?", "answer": "red"}) + "\n")
    QUESTIONS["jsonl"](test=str(tmp_path / "q.jsonl")).build("test")
    assert not caplog.text


def test_who_reads_a_part_alone_sees_no_traceback() -> None:
    import subprocess
    import sys

    code = "from transmamba.cli.mistakes import guarded\nimport sys\n"
    code += "sys.exit(guarded(lambda: [print('line') for _ in range(100_000)] and 0))"
    command = f'{sys.executable} -c "{code}" | head -1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.split() == ["line", "141"] and done.stderr == ""
