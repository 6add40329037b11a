"""Models of transformers that are no students, measured: a LLaVA by its one set of weights, a language model
from questions alone and on texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_language import llama_folder
from small_llava import SIDE, llava_folder

import transmamba
from transmamba.cli.main import main
from transmamba.config import load as configs
from transmamba.config.registry import TASKS
from transmamba.core.task import Pass
from transmamba.ecosystems.find import load_model
from transmamba.runs.evaluate import as_run
from transmamba.tasks.questions import Questions

SCENES = dict(name="scenes", side=SIDE, count_train=20, count_test=6)


def test_a_plain_llava_is_measured_by_the_weights_it_has_and_is_its_own_teacher(tmp_path: Path) -> None:
    folder = llava_folder(tmp_path / "llava", context=512)
    model = load_model(folder)
    run, looks = as_run(model)
    assert isinstance(run, torch.nn.Module)
    teacher = transmamba.load_teacher(folder)
    config = configs.parse(TASKS["questions"], {"data": SCENES, "lookup": 0, "controls": []}, "task")
    task: Questions = config.build(looks)
    prompts = next(iter(task.evaluators("test")[0].batches(Pass(batch_size=6))))
    written = run.generate(prompts.inputs, 5)
    assert torch.equal(written, teacher.generate(prompts.inputs, 5))
    batch = next(task.eval_batches("test", Pass(batch_size=6)))
    mine, theirs = run.run(batch.inputs).logits, teacher(batch.inputs, {}).logits
    assert mine is not None and theirs is not None
    real = batch.inputs["text_mask"]
    assert torch.allclose(mine()[real], theirs()[real], rtol=1e-4, atol=1e-5)
    held = {tensor.data_ptr() for module in run.modules() for tensor in module.parameters(recurse=False)}
    assert held == {tensor.data_ptr() for tensor in model.parameters()}  # after it has written, too


def test_a_language_model_is_measured_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = llama_folder(tmp_path / "words", context=256)
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "Once there was a cat."}\n{"text": "The dog ran to the red ball."}\n')
    blind = ["scenes", "side=16", "count_train=8", "count_test=4", "task.pictures=none", "task.controls=[]"]
    read = ["text", f"test={texts}", f"train={texts}", "task.block=32", f"task.cache={tmp_path / 'cache'}"]
    for task, data, key in (("questions", blind, "accuracy"), ("language", read, "perplexity")):
        asked = ["evaluate", str(folder), "--task", task, "--device", "cpu", "--json", "--data", *data]
        assert main(asked) == 0
        assert key in json.loads(capfd.readouterr().out)["student"]
