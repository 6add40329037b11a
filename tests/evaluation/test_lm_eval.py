"""The same numbers from lm-evaluation-harness, which loads a saved student by transformers and asks what its
own task definitions say, of questions in local files.

Skipped where lm_eval is not installed. It may live in an environment of its own, whose Python LM_EVAL_PYTHON
names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import write_jsonl

import transmamba
from transmamba.config import load as configs
from transmamba.config.registry import TASKS
from transmamba.core.task import Pass
from transmamba.ecosystems.find import preprocessing_of
from transmamba.evaluation.run import ModelRunner, measure

ROOT = Path(__file__).parents[2]
# ours, theirs, from which of the harness's files
DEFINED = {
    "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "arc_easy_letters": "mmlu/default/_default_template_yaml",
}
ITEMS = 40


@pytest.fixture
def python() -> str:
    """The interpreter that has lm_eval."""
    named = os.environ.get("LM_EVAL_PYTHON")
    if named is None and importlib.util.find_spec("lm_eval") is None:
        pytest.skip(
            "lm_eval is not installed (pip install lm_eval, here or in an environment of its own, whose "
            "Python LM_EVAL_PYTHON names)"
        )
    return named or sys.executable


def real(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]


@pytest.fixture
def student(python: str, shared_data: Path, tmp_path: Path) -> Path:
    """A hybrid of stories260K as it starts."""
    teacher, folder = tmp_path / "teacher", tmp_path / "student"
    script = ROOT / "scripts" / "stories260k.py"
    command = [sys.executable, str(script), str(shared_data / "stories260k"), str(teacher)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    made, _ = transmamba.convert(transmamba.load_teacher(teacher), "hybrid_lm", attention_layers=[0, 1, 3, 4])
    transmamba.save_student(made, folder)
    return folder


@pytest.fixture
def files(shared_data: Path, tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    """Of each benchmark the authors' file, and its rows as the harness's data set has them."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir(), theirs.mkdir()
    bench = shared_data / "lm_bench"
    goals = real(bench / "piqa" / "valid.jsonl")[:ITEMS]
    labels = (bench / "piqa" / "valid-labels.lst").read_text().split()[:ITEMS]
    write_jsonl(ours / "piqa.jsonl", goals)
    (ours / "piqa-labels.lst").write_text("\n".join(labels))
    piqa = [dict(row, label=int(label)) for row, label in zip(goals, labels, strict=True)]
    four = [row for row in real(bench / "arc_easy" / "arc_easy_test.jsonl") if len(row["choices"]) == 4]
    four = four[:ITEMS]
    for name in ("arc_easy", "arc_easy_letters"):
        write_jsonl(ours / f"{name}.jsonl", four)
    letters = [dict(question=row["query"], choices=row["choices"], answer=row["gold"]) for row in four]
    arc = [
        dict(
            question=row["query"].removeprefix("Question: "),
            choices=dict(text=row["choices"], label=[*"ABCD"]),
            answerKey="ABCD"[row["gold"]],
        )
        for row in four
    ]
    stories = (shared_data / "text" / "tinystories_head.txt").read_text().split("\n")
    words = [line.split()[: 5 + k % 50] for k, line in enumerate(stories)]
    lambada = [dict(text=" ".join(each)) for each in words if len(each) > 4][:ITEMS]
    write_jsonl(ours / "lambada.jsonl", lambada)
    rows = dict(piqa=piqa, arc_easy=arc, lambada=lambada, arc_easy_letters=letters)
    return {
        name: (ours / f"{name}.jsonl", Path(write_jsonl(theirs / f"{name}.jsonl", mine)))
        for name, mine in rows.items()
    }


def harness(python: str, student: Path, files: dict[str, tuple[Path, Path]], folder: Path) -> dict[str, Any]:
    """What lm_eval finds, by benchmark."""
    said = subprocess.run(
        [python, "-c", "import lm_eval; print(lm_eval.__path__[0])"],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    tasks = Path(said.stdout.split("\n")[-2]) / "tasks"
    folder.mkdir()
    for name, (_, rows) in files.items():
        lines = [
            f"include: {tasks / DEFINED[name]}",
            f"task: local_{name}",
            "tag: null",
            "dataset_path: json",
            "dataset_name: null",
            f"dataset_kwargs: {{data_files: {{test: {rows}}}}}",
            *(f"{split}_split: null" for split in ("training", "validation", "fewshot")),
            "test_split: test",
        ]
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    command = [python, "-m", "lm_eval", "--model", "hf"]
    command += ["--model_args", f"pretrained={student},dtype=float32"]
    command += ["--tasks", ",".join(f"local_{name}" for name in files), "--include_path", str(folder)]
    command += ["--device", "cpu", "--batch_size", "8", "--output_path", str(folder / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (folder / "out").rglob("results_*.json")
    results = json.loads(found.read_text())["results"]
    return {name: results[f"local_{name}"] for name in files}


@pytest.mark.timeout(600)
def test_numbers_are_the_harness_s(
    python: str, student: Path, files: dict[str, tuple[Path, Path]], shared_data: Path, tmp_path: Path
) -> None:
    theirs = harness(python, student, files, tmp_path / "harness")
    benchmarks: list[dict[str, Any]] = [dict(name=name, path=str(ours)) for name, (ours, _) in files.items()]
    benchmarks[-1]["permuted"] = 1
    test = str(shared_data / "text" / "tinystories_head.txt")
    values = dict(
        data=dict(name="text", test=test), block=128, cache=str(tmp_path / "tokens"), benchmarks=benchmarks
    )
    model = transmamba.load_student(student)
    task = configs.parse(TASKS["language"], values, "task").build(preprocessing_of(model))
    found = measure(
        task.benchmarks.evaluators, {"student": ModelRunner(model, torch.device("cpu"))}, Pass(batch_size=8)
    ).metrics("student")
    for name in ("piqa", "arc_easy"):
        for key in ("acc", "acc_norm"):
            assert found[f"{name}_{key}"] == pytest.approx(100 * theirs[name][f"{key},none"])
    assert found["arc_easy_letters_acc"] == pytest.approx(100 * theirs["arc_easy_letters"]["acc,none"])
    assert found["lambada_acc"] == pytest.approx(100 * theirs["lambada"]["acc,none"])
    assert found["lambada_perplexity"] == pytest.approx(theirs["lambada"]["perplexity,none"], rel=1e-4)
    assert 0 < found["lambada_acc"] < 100
