"""The plug-in of lmms-eval, where that is installed: it asks a model as `transmamba evaluate` does."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_llava import llava_folder

TASK = """task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/questions.jsonl"}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: 5, temperature: 0, do_sample: false, until: ["zzz"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
UTILS = """from PIL import Image


def visual(doc):
    return [Image.open(doc["image"])] if doc["image"] else []
"""
QUESTIONS = ("Which colour is it?", "What is the cat on?", "one two three four five six?")


def test_the_entry_point_names_a_model_that_is_there() -> None:
    (found,) = [
        each
        for each in importlib.metadata.entry_points(group="lmms_eval.models")
        if each.name == "transmamba"
    ]
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (pip install lmms-eval)")
    made = found.load()()
    module, _, name = made.simple_class_path.rpartition(".")
    assert hasattr(importlib.import_module(module), name)


def test_answers_are_those_of_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (pip install lmms-eval)")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from transmamba.config.registry import QUESTIONS as READERS
    from transmamba.runs.evaluate import prepare
    from transmamba.tasks.questions import QuestionsConfig

    model, rows = llava_folder(tmp_path / "model"), []
    for number, question in enumerate(QUESTIONS * 3):
        seen = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 16), (17 * number, 90, 200 - 20 * number)).save(seen)
        shown = "" if number == 4 else str(seen)
        rows.append({"question": question, "image": shown, "answer": "blue", "answers": ["blue"]})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "questions.jsonl").write_text(lines)
    own = "".join(
        json.dumps({k: v for k, v in row.items() if k != "answer" and v != ""}) + "\n" for row in rows
    )
    (tmp_path / "own.jsonl").write_text(own)
    task = tmp_path / "task"
    task.mkdir()
    (task / "colours.yaml").write_text(TASK.format(folder=tmp_path))
    (task / "utils.py").write_text(UTILS)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    found: Any = simple_evaluate(
        model="transmamba",
        model_args=f"pretrained={model}",
        tasks=["colours"],
        batch_size=4,
        device="cpu",
        task_manager=TaskManager("ERROR", include_path=str(task), model_name="transmamba"),
        log_samples=True,
    )
    said = {each["doc_id"]: each["filtered_resps"][0] for each in found["samples"]["colours"]}
    reader: Any = READERS["jsonl"]
    data = reader(train=str(tmp_path / "own.jsonl"), test=str(tmp_path / "own.jsonl"))
    config = QuestionsConfig(data=data, answer_tokens=5, controls=(), lookup=0)
    measured = prepare(str(model), config, batch_size=3).measure()
    answers = measured.outcomes[0]["student"].answers
    assert len(set(said.values())) > 1, "a model that says one thing would tell nothing"
    assert [said[number] for number in range(len(rows))] == [each.strip() for each in texts_of(answers)]


def texts_of(answers: Any) -> list[str]:
    return list(answers.said)


@pytest.mark.parametrize(
    "said, what",
    [({"temperature": 0.7}, "temperature: 0.7"), ({"num_beams": 4}, "num_beams: 4"), ({"foo": 1}, "foo")],
)
def test_what_is_not_done_is_refused_by_name(said: dict[str, Any], what: str) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (pip install lmms-eval)")
    from transmamba.errors import UserError
    from transmamba.runs.lmms_eval_model import _Asked

    args = ("What?", said, lambda doc: [], 0, "colours", "test")
    with pytest.raises(UserError, match=what):
        _Asked.of(args, {"colours": {"test": [{}]}})
