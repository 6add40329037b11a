"""The miniature of vision and language: a LLaVA is trained, becomes Mamba with cross-Mamba, and transformers
alone writes what the run wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pytest
from safetensors.torch import load_file

import transmamba
from transmamba.config.registry import QUESTIONS
from transmamba.runs.run import load_recipe

ROOT = Path(__file__).parents[1]
DATA = "task.data={name: scenes, side: 32, count_train: 300, count_test: 12}"
QUICK = (
    DATA,
    "task.lookup=100",
    "task.controls=[picture]",
    "task.answer_tokens=6",
    "trainer.log_every=1",
    "trainer.global_batch=8",
)


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With stories260K, and the teacher's run."""
    made = tmp_path_factory.mktemp("llava")
    script = ROOT / "scripts" / "stories260k.py"
    done = fresh_process.run_script(script, shared_data / "stories260k", made / "stories260k")
    assert done.returncode == 0, done.stderr[-2000:]
    decoder = f"student.decoder={made / 'stories260k'}"
    transmamba.distill(recipe("llava_debug_vit", made / "teacher", decoder, "stages.0.steps=15"))
    return made


def recipe(name: str, out: Path, *overrides: str) -> Any:
    return load_recipe(
        ROOT / "recipes" / "configs" / f"{name}.yaml", [f"output_dir={out}", *QUICK, *overrides]
    )


def converted(folder: Path, name: str, *overrides: str) -> dict[str, Any]:
    taught = (f"teacher.model={folder / 'teacher'}", "teacher_recipe=null")
    return transmamba.distill(recipe("llava_to_mamba_debug", folder / name, *taught, *overrides))


def losses(run: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[f"loss/{name}"] for row in rows if f"loss/{name}" in row]


@pytest.mark.usefixtures("report_of_a_run")
def test_a_llava_becomes_mamba(folder: Path) -> None:
    learnt = losses(folder / "teacher", "cross_entropy")
    assert np.mean(learnt[-5:]) < 0.6 * learnt[0]
    results = converted(folder, "run", "stages.0.steps=6", "stages.1.steps=16", "stages.2.steps=2")
    run = folder / "run"
    for name in ("mixer/image", "mixer/decoder", "kl"):
        found = losses(run, name)
        assert np.mean(found[len(found) // 2 :]) < 0.9 * np.mean(found[: len(found) // 3]), name
    for who in ("student", "teacher"):
        assert results[who].keys() >= {"accuracy", "exact_match", "unknown", "kl", "lookup_accuracy"}
    assert "questions" in (run / "report.html").read_text()
    weights = load_file(run / "student" / "model.safetensors")
    assert not any("self_attn" in name and ".layers.2." not in name for name in weights if "language" in name)
    source = QUESTIONS["scenes"](side=32, count_train=300, count_test=12).build("test")
    pictures = folder / "pictures"
    pictures.mkdir()
    asked = []
    for number in range(4):
        item = source.item(number)
        item.images()[0].save(pictures / f"{number}.png")
        asked.append(item.question)
    code = f"""
import sys, json, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = {str(run / "student")!r}
import transmamba  # the tower is a Vim of timm's
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
pictures = [Image.open({str(pictures)!r} + f"/{{k}}.png") for k in range(4)]
texts = ["USER: <image>\\n" + each + " ASSISTANT:" for each in {asked!r}]
given = processor(images=pictures, text=texts, return_tensors="pt", padding=True, return_token_type_ids=False)
options = dict(max_new_tokens=6, do_sample=False)
with torch.no_grad():
    quick, slow = (model.generate(**given, **options, use_cache=use) for use in (True, False))
assert quick.tolist() == slow.tolist()
alone = processor(images=pictures[3], text=texts[3], return_tensors="pt", return_token_type_ids=False)
row = model.generate(**alone, **options)[0, alone["input_ids"].shape[1]:].tolist()
new = quick[3, given["input_ids"].shape[1]:].tolist()
assert new[:len(row)] == row
print(json.dumps(processor.batch_decode(quick[:, given["input_ids"].shape[1]:], skip_special_tokens=True)))
"""
    done = fresh_process.run(code)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    data: Any = QUESTIONS["scenes"](side=32, count_train=300, count_test=4)
    from transmamba.runs.evaluate import prepare
    from transmamba.tasks.questions import QuestionsConfig

    config = QuestionsConfig(data=data, controls=(), lookup=0, answer_tokens=6)
    mine = prepare(str(run / "student"), config).measure().outcomes[0]["student"].answers
    assert [each.strip() for each in said] == list(mine.said)


@pytest.mark.slow
def test_it_goes_on_exactly(folder: Path) -> None:
    """From a checkpoint of the second stage on the run is that which was not stopped, bit for bit."""
    import shutil

    short = ("stages.0.steps=2", "stages.1.steps=4", "stages.2.steps=1", "trainer.save_every=2")
    converted(folder, "whole", *short)
    run = folder / "whole"
    wanted = load_file(run / "student" / "model.safetensors")
    steps = sorted((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for gone in (steps[-1], run / "student"):
        shutil.rmtree(gone)
    (run / "results.json").unlink()
    converted(folder, "whole", *short)
    made = load_file(run / "student" / "model.safetensors")
    assert made.keys() == wanted.keys() and all((made[name] == wanted[name]).all() for name in wanted)
