"""`transmamba evaluate --report`: the page that a run has, of a model that was measured without one."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_language import TEXTS, llama_folder
from small_llava import llava_folder

from transmamba.ecosystems.find import save_model

Command = Callable[..., Any]
SYNTHETIC = ["--data", "synthetic", "num_train=12", "num_test=8", "num_classes=3", "size=8"]


def pictures_of(page: str) -> list[Any]:
    """Those that lie in it."""
    found = re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


def who_answers(page: str) -> set[str]:
    return set(re.findall(r"(\w+): <span class=", page))


def written(command: Command, page: Path, *words: Any) -> str:
    done = command("evaluate", *words, "--report", page, "--json")
    assert done.code == 0 and f"report: {page}" in done.err, done.err
    assert "student" in json.loads(done.out), "what is printed stays what it was"
    text = page.read_text()
    assert "<h2>When and on what</h2>" in text and "Left out, because" not in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text), "one file, without a request"
    return text


def test_questions_stand_with_their_pictures_and_what_was_answered(command: Command, tmp_path: Path) -> None:
    llava, lines, colours = llava_folder(tmp_path / "llava", context=200), [], []
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        colours.append((60 * number, 200 - 60 * number, 90))
        Image.new("RGB", (24, 24), colours[-1]).save(tmp_path / f"pictures/{number}.png")
        lines.append({"image": f"{number}.png", "question": f"what is in {number}?", "answers": ["red"]})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = [llava, "--task", "questions", "--data", "jsonl", f"test={tmp_path / 'q.jsonl'}"]
    words += [f"images={tmp_path / 'pictures'}", "task.controls=[]", "task.lookup=0", "task.answer_tokens=4"]
    page = written(command, tmp_path / "page.html", *words)
    assert all(f"what is in {number}?" in page for number in range(3))
    middles = [picture[len(picture) // 2, len(picture) // 2] for picture in pictures_of(page)]
    assert len(middles) == 3
    for colour in colours:
        assert min(np.abs(middle.astype(int) - colour).max() for middle in middles) <= 3
    assert who_answers(page) == {"model"}


def test_classes_have_their_exhibits_and_a_teacher_its_answers(
    command: Command, teacher: Path, tmp_path: Path
) -> None:
    page = written(command, tmp_path / "alone.html", teacher, *SYNTHETIC)
    assert "Model " in page and "Student " not in page and "The model's answers" in page
    assert who_answers(page) == {"model"} and pictures_of(page)
    both = written(command, tmp_path / "both.html", teacher, *SYNTHETIC, "--teacher", teacher)
    assert "Teacher and student" in both and "Student " in both
    assert who_answers(both) == {"student", "teacher"}


def test_texts_and_captions_have_theirs(command: Command, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("\n\n".join(TEXTS * 3))
    llama = llama_folder(tmp_path / "llama")
    words = ["--task", "language", "--data", tmp_path / "test.txt", "task.block=32"]
    assert "perplexity" in written(command, tmp_path / "words.html", llama, *words).lower()
    pytest.importorskip("open_clip", reason="needs open_clip")
    from tiny_clip import made

    save_model(made(quick_gelu=True), tmp_path / "clip")
    words = ["--task", "image_text", "--data", "scenes", "side=16", "count_train=8", "count_test=6"]
    page = written(command, tmp_path / "clip.html", tmp_path / "clip", *words, "--batch-size", 4)
    assert "recall" in page and pictures_of(page)


def test_a_page_is_replaced_where_that_is_said_alone(command: Command, teacher: Path, tmp_path: Path) -> None:
    """And nothing is measured before it is known."""
    page = tmp_path / "report.html"
    page.write_text("mine")
    for given in (page, tmp_path):
        done = command("evaluate", teacher, *SYNTHETIC, "--report", given)
        done.refuses(f"--report {page} exists; write another file, or --overwrite")
        assert "evaluating" not in done.err and page.read_text() == "mine"
    command("evaluate", "nothing", *SYNTHETIC, "--report", tmp_path / "no/page.html").refuses(
        f"{tmp_path / 'no'} is no folder; make it"
    )
    command("evaluate", teacher, *SYNTHETIC, "--overwrite").refuses("--overwrite goes with --report FILE")
    done = command("evaluate", teacher, *SYNTHETIC, "--report", tmp_path, "--overwrite")
    assert done.code == 0 and "<h2>Examples</h2>" in page.read_text()
