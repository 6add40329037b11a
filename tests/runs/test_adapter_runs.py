"""A recipe's `adapter`: what is trained, what is left in the run's folder, and that it is resumed exactly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import harness
import peft
import pytest
import timm
import torch
from safetensors.torch import load_file
from small_language import TEXTS, llama_folder, texts_file
from transformers import AutoModelForCausalLM

import transmamba
from transmamba.config import load as configs
from transmamba.ecosystems.find import load_model, save_model
from transmamba.errors import UserError
from transmamba.runs.recipe import Recipe
from transmamba.runs.run import run as run_recipe

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, and a student that is to be adapted."""
    folder = tmp_path_factory.mktemp("adapters")
    harness.tiny_recipe(folder)
    save_model(harness.tiny_student(), folder / "student")
    return folder


def recipe(place: Path, run: Path, methods: list[Any], **changes: Any) -> Recipe:
    stage = dict(name="tune", losses=["kl", "bidirectional"], steps=6, lr=3e-3)
    values: dict[str, Any] = dict(
        output_dir=str(run),
        student=dict(name="saved", model=str(place / "student")),
        init=None,
        adapter=dict(methods=methods),
        stages=[stage],
    )
    return harness.tiny_recipe(place, **{**values, **changes})


@pytest.mark.parametrize(
    "methods",
    [["lora_x", "a", "additional_scan", "pos_embed"], ["prompt", "lora_x", "initial_state"]],
    ids=str,
)
def test_an_adapter_is_distilled(place: Path, tmp_path: Path, methods: list[str], capsys: Any) -> None:
    run = tmp_path / "run"
    results = harness.run_quietly(recipe(place, run, methods))
    base = load_model(place / "student")
    merges = "prompt" not in methods
    # PEFT's own files, over the student that was adapted
    with torch.no_grad():
        alone = peft.PeftModel.from_pretrained(load_model(place / "student"), run / "adapter").eval()
        wanted = alone(IMAGES)
        assert (wanted - base(IMAGES)).abs().max() > 1e-4
        again = load_model(run)
        torch.testing.assert_close(again(IMAGES), wanted, atol=1e-5, rtol=0)
        assert hasattr(again, "tuned") != merges
        save_model(again, tmp_path / "copy")  # what was loaded is saved as it was
        torch.testing.assert_close(load_model(tmp_path / "copy")(IMAGES), wanted, atol=1e-5, rtol=0)
        by_timm = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
        torch.testing.assert_close(by_timm(IMAGES), wanted, atol=1e-5, rtol=0)
    measured = transmamba.evaluate(run, recipe(place, run, methods).task)
    assert measured["student"]["top1"] == pytest.approx(results["student"]["top1"])


def test_the_student_itself_stays_as_it_is(place: Path, tmp_path: Path) -> None:
    """Only the adapter moves; its coverage is said when training starts."""
    methods = ["prompt", {"name": "a", "rate": 0.0}, "lora_z"]
    harness.run_quietly(recipe(place, tmp_path / "run", methods, init={}))  # from which nothing is taken
    saved = load_file(next((tmp_path / "run" / "checkpoints").glob("step-*")) / "model.safetensors")
    base = load_model(place / "student").state_dict()
    for name, tensor in base.items():
        parts = [key for key in saved if key.removeprefix("student.").replace(".base_layer", "") == name]
        assert len(parts) == 1 and torch.equal(saved[parts[0]], tensor), name
    moved = {key: tensor for key, tensor in saved.items() if "transmamba_adapters" in key}
    assert not any(tensor.any() for key, tensor in moved.items() if key.endswith("default.a"))
    assert all(tensor.any() for key, tensor in moved.items() if key.endswith("lora_z_up"))


def test_fine_tuning_with_a_head_of_its_own(place: Path, tmp_path: Path) -> None:
    """Without a teacher; the head is trained whole, and saved with the adapter."""
    adapter = dict(methods=["conv1d", "sdt"], whole=["head"], choice=2)
    stages = [dict(name="tune", losses=["cross_entropy"], steps=4, lr=3e-3)]
    run = tmp_path / "run"
    harness.run_quietly(recipe(place, run, [], adapter=adapter, stages=stages, teacher=None))
    old, new = load_model(place / "student"), load_model(run)
    assert type(old) is type(new) and not torch.equal(old.head.weight, new.head.weight)
    alone = peft.PeftModel.from_pretrained(old, run / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(new(IMAGES), alone(IMAGES), atol=1e-5, rtol=0)


def test_a_killed_run_goes_on_exactly(place: Path, tmp_path: Path) -> None:
    """Random tokens, and what sdt has chosen, are those of the run that was begun."""
    methods = ["affix", "prompt", {"name": "bias", "rate": 2.0}, "sdt"]
    changes: dict[str, Any] = dict(adapter=dict(methods=methods, choice=2))
    whole = recipe(place, tmp_path / "whole", methods, **changes)
    harness.run_quietly(whole)
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    for path in ("student", "adapter"):
        shutil.rmtree(cut / path)
    (cut / "results.json").unlink()
    steps = sorted((cut / "checkpoints").glob("step-*"))
    assert len(steps) > 1
    shutil.rmtree(steps[-1])
    harness.run_quietly(recipe(place, cut, methods, **changes))
    for file in ("adapter/adapter_model.safetensors", "student/adapter_model.safetensors"):
        ours, theirs = (load_file(folder / file) for folder in (tmp_path / "whole", cut))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(student=dict(name="vim", model="vim_micro_patch2_8")), "student vim begins anew"),
        (dict(student=dict(name="moe_mamba")), "student moe_mamba begins anew"),
        (dict(student=dict(name="timm", model="vit_tiny_patch16_224")), "student timm begins anew"),
        (dict(adapter=dict(methods=["lora_w"])), "lora_w"),
        (dict(adapter=dict(methods=[])), "adapter.methods: empty"),
        (dict(adapter=dict(methods=["a", "a"])), "methods has 'a' twice"),
        (dict(init=dict(layers="all", mimic=True)), "takes nothing from the teacher"),
        (dict(scratch=dict()), "leave scratch out"),
        (
            dict(stages=[dict(losses=["kl"], steps=2, trainable="head")]),
            "stages.0.trainable is 'head', but an adapter is all that is trained",
        ),
        (
            dict(stages=[dict(losses=["kl"], steps=2, rates=dict(mixers=2.0))]),
            "stages.0.rates is .*, but an adapter's methods have their own",
        ),
    ],
)
def test_what_cannot_be_with_an_adapter(place: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(place, place / "none", ["a"], **changes)


def test_what_the_student_cannot_take_is_said_before_training(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'heads' is no module of the student"):
        harness.run_quietly(recipe(place, tmp_path / "a", [], adapter=dict(methods=["a"], whole=["heads"])))
    with pytest.raises(UserError, match="layers_to_transform: 9 is no layer with a mixer"):
        harness.run_quietly(recipe(place, tmp_path / "b", [], adapter=dict(methods=["a"], layers=[9])))
    with pytest.raises(UserError, match=r"no config.json|no such folder"):
        student = dict(name="saved", model=str(tmp_path / "nowhere"))
        harness.run_quietly(recipe(place, tmp_path / "c", ["a"], student=student))


def test_a_student_of_other_classes_is_refused(place: Path, tmp_path: Path) -> None:
    data = dict(name="synthetic", num_train=37, num_test=11, num_classes=4, size=8)
    task = dict(name="image_classification", data=data)
    stages = [dict(losses=["cross_entropy"], steps=2)]
    with pytest.raises(UserError, match="student has 3 classes but the data has 4"):
        harness.run_quietly(recipe(place, tmp_path / "a", ["a"], task=task, teacher=None, stages=stages))


@pytest.mark.parametrize(
    "methods", [["lora_x", "prompt", "initial_state"], ["lora_out", "lora_embed"]], ids=str
)
def test_a_language_student(tmp_path: Path, methods: list[str]) -> None:
    """Distilled into an adapter that its weights cannot hold, and one that they can; it writes as it is
    trained, and transformers with PEFT reads what is left as we do."""
    llama = llama_folder(tmp_path / "llama")
    student, _ = transmamba.convert(str(llama), "hybrid_lm", attention_layers=[0])
    save_model(student, tmp_path / "student")
    data = dict(name="text", train=texts_file(tmp_path / "a.jsonl", TEXTS * 8))
    values = dict(
        output_dir=str(tmp_path / "run"),
        task=dict(name="language", data=data, block=32, validation=0.2, cache=str(tmp_path / "tokens")),
        teacher=dict(name="causal_lm", model=str(llama)),
        student=dict(name="saved", model=str(tmp_path / "student")),
        init=None,
        adapter=dict(methods=methods),
        stages=[dict(losses=["kl"], steps=4, lr=1e-2)],
        trainer=dict(global_batch=4, eval_every=0),
    )
    harness.run_quietly(configs.parse(Recipe, values, "language"))
    text = torch.randint(3, 250, (2, 6), generator=torch.Generator().manual_seed(1))
    ours: Any = load_model(tmp_path / "run")
    with torch.no_grad():
        wanted = ours.run({"text": text}).logits()
        assert (wanted - student.run({"text": text}).logits()).abs().max() > 1e-3
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
        alone = peft.PeftModel.from_pretrained(stock, tmp_path / "run" / "adapter").eval()
        torch.testing.assert_close(alone(text).logits, wanted, atol=1e-4, rtol=0)
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student").eval()
        torch.testing.assert_close(whole(text).logits, wanted, atol=1e-4, rtol=0)
        made = ours.generate({"text": text}, 4)
        for k in range(made.shape[1]):
            longer = torch.cat([text, made[:, :k]], dim=1)
            best = ours.run({"text": longer}).logits()[:, -1].argmax(-1)
            going = (made[:, :k] != 2).all(dim=1)  # until its end
            assert torch.equal(made[going, k], best[going])


def test_a_clip_student(tmp_path: Path) -> None:
    """Both towers' mixers, by what a task of pictures and captions asks."""
    pytest.importorskip("open_clip", reason="needs open_clip")
    from tiny_clip import made

    save_model(made(), tmp_path / "clip")
    student, _ = transmamba.convert(str(tmp_path / "clip"), "clip")
    save_model(student, tmp_path / "student")
    values = dict(
        output_dir=str(tmp_path / "run"),
        task=dict(name="image_text", data=dict(name="scenes", side=16, count_train=20, count_test=6)),
        teacher=dict(name="open_clip", model=str(tmp_path / "clip")),
        student=dict(name="saved", model=str(tmp_path / "student")),
        init=None,
        adapter=dict(methods=["lora_x", "initial_state"]),
        stages=[dict(losses=["contrastive"], steps=3, lr=1e-2)],
        trainer=dict(global_batch=8, eval_every=0),
    )
    results = harness.run_quietly(configs.parse(Recipe, values, "pairs"))
    with pytest.raises(UserError, match="CustomTextCLIP has 2 embeddings, and does not say which is its own"):
        both = {**values, "adapter": dict(methods=["lora_embed"]), "output_dir": str(tmp_path / "b")}
        harness.run_quietly(configs.parse(Recipe, both, "pairs"))
    again: Any = load_model(tmp_path / "run")
    pictures = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = load_model(tmp_path / "student").encode_image(pictures)  # type: ignore[operator]
        assert (again.encode_image(pictures) - before).abs().max() > 1e-4
    task = configs.parse(Recipe, values, "pairs").task
    measured = transmamba.evaluate(tmp_path / "run", task)["student"]
    assert measured["mean_recall"] == pytest.approx(results["student"]["mean_recall"])


def test_a_student_that_writes_about_pictures(tmp_path: Path) -> None:
    from small_llava import SIDE, llava_folder

    llava = llava_folder(tmp_path / "llava", context=512)
    student, _ = transmamba.convert(str(llava), "llava", decoder={"kind": "hybrid"})
    save_model(student, tmp_path / "student")
    data = dict(name="scenes", side=SIDE, count_train=24, count_test=4)
    values = dict(
        output_dir=str(tmp_path / "run"),
        task=dict(name="questions", data=data, writing="never"),
        teacher=dict(name="llava", model=str(llava)),
        student=dict(name="saved", model=str(tmp_path / "student")),
        init=None,
        adapter=dict(methods=["lora_x", "a", "lora_embed"]),
        stages=[dict(losses=["kl"], steps=2, lr=1e-2)],
        trainer=dict(global_batch=4, eval_every=0),
    )
    results = harness.run_quietly(configs.parse(Recipe, values, "questions"))["student"]
    with pytest.raises(UserError, match="state_offset_h cannot be merged, and this student"):
        stuck = {
            **values,
            "adapter": dict(methods=["a", "state_offset_h"]),
            "output_dir": str(tmp_path / "b"),
        }
        harness.run_quietly(configs.parse(Recipe, stuck, "questions"))
    measured = transmamba.evaluate(tmp_path / "run", configs.parse(Recipe, values, "questions").task)
    assert measured["student"]["perplexity"] == pytest.approx(results["perplexity"], rel=1e-4)


@pytest.mark.usefixtures("report_of_a_run")
def test_a_run_may_leave_its_numbers_alone(place: Path, tmp_path: Path) -> None:
    """The same as those of one that leaves everything."""
    changes: dict[str, Any] = dict(trainer__eval_every=2)
    whole = run_recipe(recipe(place, tmp_path / "whole", ["lora_x"], **changes), quiet=True)
    changes |= dict(leaves="numbers", trainer__save_every=None)
    alone = run_recipe(recipe(place, tmp_path / "alone", ["lora_x"], **changes), quiet=True)
    assert alone["adapter"].pop("merge_seconds") > 0 and whole["adapter"].pop("merge_seconds") > 0
    assert harness.without_timing(alone) == harness.without_timing(whole)
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    gone = {path.name for path in (tmp_path / "whole").iterdir()} - names
    assert gone == {"student", "adapter", "checkpoints", "report.html"}
    assert (
        run_recipe(recipe(place, tmp_path / "alone", ["lora_x"], **changes), quiet=True)["student"]
        == alone["student"]
    )
    assert not (tmp_path / "alone" / "report.html").exists(), "nor when it is asked again"
    with pytest.raises(UserError, match="leaves: numbers, but scratch"):
        harness.tiny_recipe(place, leaves="numbers", scratch={})
