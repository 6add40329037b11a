"""The language miniature: stories260K becomes a hybrid, and transformers alone finds what the run found."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import fresh_process
import pytest
import torch
from safetensors.torch import load_file
from students.hybrids import with_us
from teachers.test_real_decoders import stories

import transmamba
from transmamba.runs.run import load_recipe

ROOT = Path(__file__).parents[1]
SHORTER = ("stages.0.steps=16", "stages.1.steps=12", "task.block=128", "trainer.log_every=1")
TEXT = "Once upon a time, there was a little girl named Lily. She liked to play with her cat.\n"


@pytest.fixture(scope="module")
def teacher(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("debug") / "stories260k"
    script = ROOT / "scripts" / "stories260k.py"
    done = fresh_process.run_script(script, shared_data / "stories260k", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def ran(shared_data: Path, teacher: Path, *overrides: str) -> dict[str, Any]:
    recipe = load_recipe(
        ROOT / "recipes" / "configs" / "llama_to_hybrid_debug.yaml",
        [
            f"output_dir={teacher.parent / 'run'}",
            f"teacher.model={teacher}",
            f"task.data.train={shared_data / 'text' / 'tinystories_head.txt'}",
            f"task.cache={teacher.parent / 'tokens'}",
            *overrides,
        ],
    )
    return transmamba.distill(recipe)


def test_the_tokenizer_is_llama2_c_s(shared_data: Path, teacher: Path) -> None:
    """The pair of neighbours with the best score is merged, again and again, as run.c does."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(teacher)
    _, words = stories(shared_data / "stories260k")
    number = {word: k for k, word in enumerate(words)}
    text = (shared_data / "text" / "tinystories_head.txt").read_text()[:3000].strip() + " é 日"
    ids = [number[" "]]
    for letter in text:
        ids += [number[letter]] if letter in number else [byte + 3 for byte in letter.encode()]
    while True:  # scores fall with the number
        pairs = [number.get(words[a] + words[b], len(words)) for a, b in itertools.pairwise(ids)]
        best = min(pairs)
        if best == len(words):
            break
        at = pairs.index(best)
        ids[at : at + 2] = [best]
    assert made(text).input_ids == [1, *ids]
    assert made.decode(made(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.usefixtures("report_of_a_run")
def test_a_language_model_becomes_a_hybrid(shared_data: Path, teacher: Path) -> None:
    """Shorter than the recipe as it stands. The folder is read by a process that never imports transmamba."""
    text = shared_data / "text" / "tinystories_head.txt"
    needle = f"task.benchmarks=[{{name: needle, path: {text}, lengths: [150, 250], items: 4}}]"
    results = ran(shared_data, teacher, *SHORTER, needle)
    found = results["student"]
    assert found["kl"] < 1.0 and found["perplexity"] > results["teacher"]["perplexity"]
    rows = [json.loads(line) for line in (teacher.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    mixer = [row["loss/mixer"] for row in rows if "loss/mixer" in row]
    assert len(mixer) == 16 and mixer[-1] < 0.8 * mixer[0]
    shown_everywhere(teacher.parent / "run", results)
    code = f"""
import sys, json, torch
{"import transmamba" if with_us() else ""}
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = {str(teacher.parent / "run" / "student")!r}
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
given = tokenizer({TEXT!r}, return_tensors="pt", return_token_type_ids=False)
with torch.no_grad():
    logits = model(**given).logits
options = dict(max_new_tokens=12, do_sample=False)
written, slowly = (model.generate(**given, **options, use_cache=use)[0].tolist() for use in (True, False))
assert written == slowly and ("transmamba" in sys.modules) == {with_us()}
print(json.dumps([type(model).__name__, logits[0, -1].tolist()]))
"""
    done = fresh_process.run(code)
    assert done.returncode == 0, done.stderr[-2000:]
    kind, logits = json.loads(done.stdout.strip().splitlines()[-1])
    student: Any = transmamba.load_student(teacher.parent / "run")
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(teacher)(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        ours = student.eval().run({"text": ids}).logits()[0, -1]
    assert kind == "BambaForCausalLM"
    assert torch.allclose(ours, torch.tensor(logits), atol=1e-4)


def shown_everywhere(run: Path, results: dict[str, Any]) -> None:
    """A benchmark is in the results, with how student and teacher differ, in the card and in the report."""
    saved = json.loads((run / "results.json").read_text())
    for who in ("student", "teacher"):
        assert saved[who].keys() >= {"needle_acc", "needle_150_acc", "needle_250_acc"}
    assert results["difference"]["needle_250_acc"]["items"] == 4
    for page in ("student/README.md", "report.html"):
        assert "needle at 250 tokens, acc %" in (run / page).read_text()


@pytest.mark.slow
def test_a_tied_student_goes_on_exactly(shared_data: Path, teacher: Path) -> None:
    """Its head is its table of words, which a checkpoint has once. From a checkpoint of the second stage on
    the run is that which was not stopped, bit for bit."""
    short = ("stages.0.steps=2", "stages.1.steps=4", "task.block=64", "trainer.log_every=1")
    options = (*short, "trainer.save_every=2", f"output_dir={teacher.parent / 'whole'}")
    ran(shared_data, teacher, *options)
    run = teacher.parent / "whole"
    wanted, rows = load_file(run / "student" / "model.safetensors"), (run / "metrics.jsonl").read_text()
    newest = max((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    assert newest.name.endswith("6"), "one of step 4 is left"
    for gone in (newest, run / "student"):
        shutil.rmtree(gone)
    (run / "results.json").unlink()
    ran(shared_data, teacher, *options)
    made = load_file(run / "student" / "model.safetensors")
    assert made.keys() == wanted.keys() and all(torch.equal(made[name], wanted[name]) for name in wanted)
    losses = [
        [json.loads(line).get("loss") for line in text.splitlines()]
        for text in (rows, (run / "metrics.jsonl").read_text())
    ]
    assert losses[0] == losses[1] and len([loss for loss in losses[0] if loss is not None]) == 6
