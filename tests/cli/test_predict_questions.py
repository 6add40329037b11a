"""`transmamba predict LLAVA picture.png --question TEXT`: as `evaluate --task questions` asks, which other
tests hold against transformers' own generation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from small_language import llama_folder
from small_llava import llava_folder

import transmamba
from transmamba.config.registry import QUESTIONS
from transmamba.evaluation.predict_answers import final_answer
from transmamba.runs.evaluate import prepare
from transmamba.tasks.questions import QuestionsConfig
from transmamba.teachers.llava import Llava

Command = Callable[..., Any]
QUESTION, INSTRUCTION = "which colour is it?", "Answer with one word."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA, its students, a run of one, and three pictures, one of them on its side."""
    folder = tmp_path_factory.mktemp("asked")
    llava_folder(folder / "llava", context=200)
    pooled = Llava(model=str(folder / "llava"), image_tokens=1).build()
    cross = dict(num_heads=2, state_size=4)
    for name, teacher, options in (
        ("vim", folder / "llava", dict(image={"kind": "vim"}, decoder={"kind": "hybrid"}, cross=cross)),
        ("run/student", pooled, dict(decoder={"kind": "hybrid"})),
    ):
        transmamba.save_student(transmamba.convert(teacher, "llava", **options)[0], folder / name)
    task = dict(name="questions", data={"name": "scenes"}, instruction=INSTRUCTION, answer_tokens=5)
    (folder / "run/config.yaml").write_text(yaml.safe_dump({"task": task}))
    (folder / "pictures").mkdir()
    pixels = np.zeros((3, 20, 28, 3), dtype=np.uint8)
    pixels[1], pixels[2, :, :20, 0], pixels[2, 10:, :, 1] = 255, 255, 255
    for number in range(3):
        image, turned = Image.fromarray(pixels[number]), Image.Exif()
        turned[0x0112] = 6 if number == 2 else 1  # a quarter
        image.save(folder / f"pictures/{number}.png", exif=turned)
    return folder


def evaluated(made: Path, model: Path, **task: Any) -> list[str]:
    """What the same model answers to the same questions as data."""
    lines = [
        {"image": f"{n}.png", "question": QUESTION, "answers": ["red" if n else "blue"]} for n in range(3)
    ]
    (made / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = QUESTIONS["jsonl"](test=str(made / "q.jsonl"), images=str(made / "pictures"))
    config = QuestionsConfig(data=data, controls=(), lookup=0, **task)
    said: list[str] = prepare(str(model), config, device="cpu").measure().outcomes[0]["student"].answers.said
    return said


@pytest.mark.parametrize("name", ("llava", "vim", "run", "run/student"))
def test_answers_are_those_of_the_evaluation(command: Command, made: Path, name: str) -> None:
    task: dict[str, Any] = dict(instruction=INSTRUCTION, answer_tokens=5) if "run" in name else {}
    done = command(
        "predict", made / name, made / "pictures", "--json", "--question", QUESTION, "--device", "cpu"
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [each["image"] for each in found] == [str(made / f"pictures/{n}.png") for n in range(3)]
    wanted = evaluated(made, made / name, **task)
    assert [each["written"] for each in found] == wanted and (len(set(wanted)) > 1 or "run" in name)
    assert all(each["answer"] == final_answer(each["written"]) for each in found)


def test_a_line_a_picture_and_the_rest_is_answered(command: Command, made: Path) -> None:
    words = ("predict", made / "llava", made / "pictures/0.png", made / "none.png", made / "pictures/1.png")
    done = command(*words, "--question", QUESTION, "--tokens", "4")
    assert done.code == 2 and done.err == f"error: {made / 'none.png'}: no such file\n"
    wanted = [" ".join(each.split()) for each in evaluated(made, made / "llava", answer_tokens=4)]
    assert done.out.splitlines() == [f"{made / f'pictures/{n}.png'}: {wanted[n]}" for n in (0, 1)]


def test_of_stages_the_conclusion_is_the_answer() -> None:
    from transmamba.cli.predict import _line, _plain
    from transmamba.evaluation.predict import Prediction

    written = "<REASONING> it is red </REASONING>\n\n<CONCLUSION> dark\nred </CONCLUSION>"
    found = Prediction(Path("p.png"), answer=final_answer(written), written=written)
    assert _line(found) == "p.png: dark red"
    assert _plain(found) == {"image": "p.png", "answer": "dark\nred", "written": written}


def test_what_does_not_go_together_is_said(
    command: Command, made: Path, teacher: Path, tmp_path: Path
) -> None:
    picture = made / "pictures/0.png"
    llama_folder(tmp_path / "words", context=64)
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / "bare" / name).write_bytes((made / "llava" / name).read_bytes())
    asked = ("--question", QUESTION)
    command("predict", teacher, picture, *asked).refuses(
        "answers no questions", "leave --question out, or name a LLaVA"
    )
    command("predict", tmp_path / "words", picture, *asked).refuses("answers no questions")
    for words in (asked, ()):
        command("predict", tmp_path / "bare", picture, *words).refuses("put its tokenizer.json there")
    command("predict", made / "vim", picture).refuses("answers questions", '--question "what is this?"')
    llava = ("predict", made / "llava", picture)
    command(*llava, "--tokens", "3").refuses("--tokens goes with --question")
    command(*llava, *asked, "--top", "3").refuses("--top does not go with --question")
    command(*llava, *asked, "--labels", "a", "b").refuses("--labels does not go with --question")
    command(*llava, *asked, "--tokens", "0").refuses("tokens is 0; write how many")
    command(*llava, *asked, "--tokens", "190").refuses(
        f"question '{QUESTION}'", "ask for an answer of at most"
    )
    command(*llava, "--question", " ").refuses("question ' ': it has no question")
    command(*llava, "--question", "<image> or <image>?").refuses("2 marks of a picture")
