"""Every recipe in recipes/ loads, says how it is run, and trains; every accelerate configuration is valid."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fresh_process
import numpy as np
import pytest
import timm
import torch
from harness import run_quietly
from small_language import TEXTS, llama_folder, texts_file, tokenizer_folder
from small_llava import SIDE, llava_folder

import transmamba
from transmamba.config import load as configs
from transmamba.config.registry import STUDENTS, TEACHERS
from transmamba.core.tower import StudentSpec
from transmamba.data.images.synthetic import Synthetic
from transmamba.data.pairs.scene_clips import DrawnClips
from transmamba.data.pairs.scenes import DrawnScenes
from transmamba.data.text.plain import Text
from transmamba.ecosystems.find import save_model
from transmamba.runs.recipe import Recipe
from transmamba.teachers.load import adapt_teacher
from transmamba.teachers.timm_vit import TimmVit

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
LAUNCHERS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))

# what keeps a 224-pixel recipe within a test: its own options otherwise
SMALL_VIM = ["student.kwargs.embed_dim=32", "student.kwargs.depth=4"]
SMALL = {
    "imagenet_deit_s_to_vim_s": SMALL_VIM,
    "cifar10_vit": ["student.kwargs.embed_dim=24", "student.kwargs.depth=2"],
    "cifar10_vit_to_vim": SMALL_VIM,
}
SMALL_CLIP: dict[str, Any] = dict(
    embed_dim=16,
    vision_cfg=dict(image_size=32, patch_size=16, layers=2, width=32, head_width=16),
    text_cfg=dict(context_length=64, vocab_size=49408, width=16, heads=2, layers=1),
)


def name_of(path: Path) -> str:
    return path.stem


def load(path: Path, *overrides: str) -> Recipe:
    return configs.load(Recipe, path, overrides)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_round_trips(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    configs.save_yaml(recipe, tmp_path / "saved.yaml")
    assert load(tmp_path / "saved.yaml") == recipe
    assert recipe.output_dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_says_how_it_is_run(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    command = re.search(r"accelerate launch .*?(recipes/\w+\.py)", header.replace("\\\n#", " "), re.DOTALL)
    assert command, "the header comment holds the command"
    assert (ROOT / command[1]).is_file()
    assert f"recipes/configs/{path.name}" in header
    assert command[1] == "recipes/distill.py"
    for launcher in re.findall(r"recipes/accelerate/\w+\.yaml", header):
        assert (ROOT / launcher).is_file()


PAIRED = [path for path in RECIPES if path.stem.startswith("clip_")]
WRITTEN = [path for path in RECIPES if "_to_hybrid" in path.stem]
BYTES = [path for path in RECIPES if path.stem == "moe_mamba"]
ASKED = [path for path in RECIPES if path.stem.startswith("llava_") and "_debug" not in path.stem]
ADAPTED = [path for path in RECIPES if "_adapter" in path.stem]
LEARNT = [path for path in RECIPES if path.stem.startswith("icl_")]
# over stories260K: test_llava_debug.py runs them; test_moe_debug.py the last
ELSEWHERE = [
    path
    for path in RECIPES
    if (path.stem.startswith("llava_") and "_debug" in path.stem) or path.stem == "moe_mamba_debug"
]


@pytest.mark.parametrize("path", PAIRED, ids=name_of)
def test_recipe_of_pairs_trains(path: Path, tmp_path: Path) -> None:
    """Two steps a stage on drawn scenes or clips, with a small CLIP in the place of models to be loaded."""
    recipe = load(path, f"output_dir={tmp_path / 'run'}")
    loaded = getattr(recipe.student, "model_cfg", None) is None
    model_cfg = SMALL_CLIP if loaded else {**recipe.student.model_cfg, "embed_dim": 16}
    if "hf_model_name" in model_cfg["text_cfg"]:  # another library's model, which is not there
        model_cfg |= {"text_cfg": SMALL_CLIP["text_cfg"]}
    size = model_cfg["vision_cfg"]["image_size"]
    data: Any = DrawnScenes(side=size, count_train=12, count_test=4)
    if getattr(recipe.task.data, "name", "") in ("msrvtt", "didemo", "scene_clips"):
        data = DrawnClips(side=size, count_train=12, count_test=4, frames=3)
    if loaded:
        torch.manual_seed(0)
        model: Any = STUDENTS["open_clip"](model_cfg=model_cfg).build(StudentSpec())
        save_model(model, tmp_path / "clip")
    student: Any = recipe.student
    if getattr(student, "num_frames", None):
        teacher = adapt_teacher(model)
        spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing)
        save_model(STUDENTS["clip"]().build(spec), tmp_path / "student", teacher.preprocessing)
    if not loaded:
        student = STUDENTS["open_clip"](model_cfg=model_cfg)
    elif student.name == "open_clip":
        begins = tmp_path / ("student" if student.num_frames else "clip")
        student = dataclasses.replace(student, model=str(begins))
    stages = tuple(
        dataclasses.replace(stage, steps=2, epochs=None, percent=None, samples=None)
        for stage in recipe.stages
    )
    _, accumulation = recipe.trainer.division(processes=1)
    trainer = dataclasses.replace(
        recipe.trainer,
        global_batch=2 * accumulation,
        micro_batch=2 if recipe.trainer.micro_batch else None,
        workers=0,
        eval_batch_size=4,
        eval_every=0,
        precision="no",
    )
    recipe = dataclasses.replace(
        recipe,
        task=dataclasses.replace(recipe.task, data=data, zero_shot=()),
        student=student,
        teacher=None if recipe.teacher is None else TEACHERS["open_clip"](model=str(tmp_path / "clip")),
        teacher_recipe=None,
        init=recipe.init and dataclasses.replace(recipe.init, calibration_images=4),
        stages=stages,
        trainer=trainer,
        wandb=None,
    )
    results = run_quietly(recipe)
    assert np.isfinite(results["student"]["mean_recall"])
    assert (tmp_path / "run" / "student" / "open_clip_model.safetensors").is_file()


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_recipe_of_texts_trains(path: Path, tmp_path: Path) -> None:
    """Two steps a stage on a few sentences, with a random Llama of as many layers as the recipe speaks of."""
    from transformers import LlamaConfig, LlamaForCausalLM

    recipe = load(path, f"output_dir={tmp_path / 'run'}")
    sizes = dict(vocab_size=300, hidden_size=32, intermediate_size=48, num_attention_heads=2)
    depth = 1 + max(recipe.student.attention_layers, default=1)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=depth)).save_pretrained(tmp_path / "llama")
    tokenizer_folder(tmp_path / "llama")
    data = Text(train=texts_file(tmp_path / "a.jsonl", TEXTS * 4), test=texts_file(tmp_path / "b.jsonl"))
    task = dataclasses.replace(recipe.task, data=data, block=32, cache=str(tmp_path / "tokens"))
    lengths = dict(steps=2, epochs=None, percent=None, samples=None, tokens=None)
    stages = tuple(dataclasses.replace(stage, **lengths) for stage in recipe.stages)
    small = dict(global_batch=2, micro_batch=None, workers=0, eval_every=0, precision="no")
    recipe = dataclasses.replace(
        recipe,
        task=task,
        stages=stages,
        teacher=TEACHERS["causal_lm"](model=str(tmp_path / "llama")),
        trainer=dataclasses.replace(recipe.trainer, **small),
        wandb=None,
    )
    assert np.isfinite(run_quietly(recipe)["student"]["kl"])
    assert (tmp_path / "run" / "student" / "tokenizer.json").is_file()


@pytest.mark.parametrize("path", ADAPTED, ids=name_of)
def test_recipe_of_an_adapter_trains(path: Path, tmp_path: Path) -> None:
    """Two steps, on a student that was made of a random teacher; what is left is the merged student."""
    recipe = load(
        path,
        f"output_dir={tmp_path / 'run'}",
        "stages.0.steps=2",
        "trainer.global_batch=2",
        "trainer.precision=no",
    )
    task: Any = recipe.task
    asked: Any = STUDENTS["saved"](model=str(tmp_path / "student"))
    data: Any = Synthetic(num_train=20, num_test=4, num_classes=10, size=8)
    teacher = None
    student: Any
    if recipe.teacher is not None:
        teacher = teacher_for("digits", recipe, tmp_path)
        student, _ = transmamba.convert(teacher.model, "vim_micro_patch2_8", embed_dim=32, depth=2)
    elif task.name == "image_classification":
        student = timm.create_model("vim_micro_patch2_8", embed_dim=32, depth=2, num_classes=3)
        asked = dataclasses.replace(recipe.student, model=str(tmp_path / "student"))
    else:
        llama = llama_folder(tmp_path / "llama")
        student, _ = transmamba.convert(str(llama), "hybrid_lm", attention_layers=[0])
        data = Text(train=texts_file(tmp_path / "a.jsonl", TEXTS * 8), test=texts_file(tmp_path / "b.jsonl"))
        task = dataclasses.replace(task, block=32, cache=str(tmp_path / "tokens"), benchmarks=())
    save_model(student, tmp_path / "student")
    recipe = dataclasses.replace(
        recipe,
        task=dataclasses.replace(task, data=data),
        teacher=teacher,
        teacher_recipe=None,
        student=asked,
    )
    results = run_quietly(recipe)["student"]
    assert np.isfinite(results["perplexity" if task.name == "language" else "nll"])
    for folder, name in (("student", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        assert (tmp_path / "run" / folder / name).is_file()
    assert not hasattr(transmamba.load_student(tmp_path / "run"), "tuned")


@pytest.mark.parametrize("path", BYTES, ids=name_of)
def test_recipe_of_bytes_trains(path: Path, tmp_path: Path) -> None:
    """Two steps on a few sentences, without a teacher, in a narrow form of its student."""
    recipe = load(path, f"output_dir={tmp_path / 'run'}", "student.width=16", "student.blocks=1")
    data = Text(train=texts_file(tmp_path / "a.jsonl", TEXTS * 4), test=texts_file(tmp_path / "b.jsonl"))
    lengths = dict(steps=2, epochs=None, percent=None, samples=None, tokens=None)
    small = dict(global_batch=2, micro_batch=None, workers=0, eval_every=0, precision="no")
    recipe = dataclasses.replace(
        recipe,
        task=dataclasses.replace(recipe.task, data=data, block=32, cache=str(tmp_path / "tokens")),
        stages=tuple(dataclasses.replace(stage, **lengths) for stage in recipe.stages),
        trainer=dataclasses.replace(recipe.trainer, **small),
    )
    assert np.isfinite(run_quietly(recipe)["student"]["perplexity"])
    assert (tmp_path / "run" / "student" / "tokenizer.json").is_file()


@pytest.mark.parametrize("path", ASKED, ids=name_of)
def test_recipe_of_questions_trains(path: Path, tmp_path: Path) -> None:
    """Two steps a stage on small scenes, with a random LLaVA, or a random tower and decoder."""
    recipe = load(path, f"output_dir={tmp_path / 'run'}", "task.controls=[]", "task.lookup=0")
    student, teacher = recipe.student, None
    if recipe.teacher is None:
        sizes = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2)
        vision = {"image_size": SIDE, "patch_size": 8, **sizes}
        decoder = str(llama_folder(tmp_path / "decoder", context=512))
        student = dataclasses.replace(student, tower=None, vision=vision, decoder=decoder)
    else:
        teacher = TEACHERS["llava"](model=str(llava_folder(tmp_path / "llava", context=512)))
        few = dataclasses.replace(student.decoder, attention_layers=(0,))  # of two
        student = dataclasses.replace(student, decoder=few)
    data = dataclasses.replace(recipe.task.data, side=SIDE, count_train=24, count_test=4)
    lengths = dict(steps=2, epochs=None, percent=None, samples=None, tokens=None)
    small = dict(global_batch=4, micro_batch=2, workers=0, eval_every=0, precision="no")
    recipe = dataclasses.replace(
        recipe,
        task=dataclasses.replace(recipe.task, data=data),
        stages=tuple(dataclasses.replace(stage, **lengths) for stage in recipe.stages),
        student=student,
        teacher=teacher,
        teacher_recipe=None,
        init=recipe.init and dataclasses.replace(recipe.init, calibration_images=4),
        trainer=dataclasses.replace(recipe.trainer, **small),
    )
    found = run_quietly(recipe)["student"]
    assert np.isfinite(found["perplexity" if teacher is None else "kl"])
    assert (tmp_path / "run" / "student" / "processor_config.json").is_file()


@pytest.mark.parametrize("path", LEARNT, ids=name_of)
def test_recipe_of_functions_trains(path: Path, tmp_path: Path) -> None:
    """Two steps a stage of a few prompts, by a model of its pattern; a teacher is made by its recipe
    likewise."""

    def small(path: Path, folder: Path, *overrides: str) -> Recipe:
        recipe = load(path, f"output_dir={folder}", *overrides)
        stages = tuple(dataclasses.replace(stage, steps=2) for stage in recipe.stages)
        trainer = dict(global_batch=5, eval_every=0, eval_batch_size=4)
        task = dataclasses.replace(recipe.task, prompts=4, baseline_prompts=2)
        student = dataclasses.replace(recipe.student, width=None if recipe.teacher else 16)
        return dataclasses.replace(
            recipe,
            task=task,
            student=student,
            stages=stages,
            init=recipe.init and dataclasses.replace(recipe.init, calibration_images=2),
            trainer=dataclasses.replace(recipe.trainer, **trainer),
            teacher_recipe=None,
        )

    recipe, taught = load(path), []
    if recipe.teacher_recipe is not None:
        run_quietly(small(ROOT / recipe.teacher_recipe, tmp_path / "teacher"))
        taught = [f"teacher.model={tmp_path / 'teacher'}"]
    found = run_quietly(small(path, tmp_path / "run", *taught))["student"]
    assert [value for key, value in found.items() if key.endswith("missed") and np.isfinite(value)]
    assert (tmp_path / "run" / "student" / "config.json").is_file()


@pytest.mark.parametrize(
    "path",
    [p for p in RECIPES if p not in (*PAIRED, *WRITTEN, *BYTES, *ASKED, *ADAPTED, *LEARNT, *ELSEWHERE)],
    ids=name_of,
)
def test_recipe_trains(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps a stage on random images of its own shape, all other settings but the size as they are."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe = load(
        path,
        *SMALL.get(path.stem, []),
        f"output_dir={tmp_path / 'run'}",
        "trainer.workers=0",
        "trainer.eval_batch_size=4",
        "trainer.eval_every=0",
        "trainer.precision=no",  # text, though to YAML it is false
    )
    size, classes = shape(path.stem)
    data = Synthetic(num_train=20, num_test=4, num_classes=classes, size=size)
    task = dataclasses.replace(recipe.task, data=data, fraction=1.0)
    stages = tuple(
        dataclasses.replace(stage, steps=2, epochs=None, percent=None, samples=None)
        for stage in recipe.stages
    )
    init = recipe.init and dataclasses.replace(recipe.init, calibration_images=4)
    _, accumulation = recipe.trainer.division(processes=1)
    trainer = dataclasses.replace(
        recipe.trainer, global_batch=2 * accumulation, micro_batch=2 if recipe.trainer.micro_batch else None
    )
    recipe = dataclasses.replace(recipe, task=task, stages=stages, init=init, trainer=trainer)
    recipe = dataclasses.replace(recipe, wandb=None, teacher_recipe=None)
    if recipe.teacher is not None:
        recipe = dataclasses.replace(recipe, teacher=teacher_for(path.stem, recipe, tmp_path))
    elif getattr(recipe.student, "pretrained", False):
        body = dataclasses.replace(recipe.student, model=teacher_for(path.stem, recipe, tmp_path).model)
        recipe = dataclasses.replace(recipe, student=body)
    results = run_quietly(recipe)
    assert np.isfinite(results["student"]["nll"])
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


def shape(name: str) -> tuple[int, int]:
    """(pixels, classes) of a recipe's images."""
    if name.startswith(("imagenet", "finetune")):
        return 224, 5
    return {"digits": (8, 10), "cifar10": (32, 10), "mnist": (28, 10)}[name.split("_")[0]]


def teacher_for(name: str, recipe: Recipe, folder: Path) -> Any:
    """A saved random ViT of the shape that the recipe's own teacher has, in few blocks."""
    size, classes = shape(name)
    options = dict(img_size=size, depth=2, num_heads=2, num_classes=classes)
    options |= {
        "digits": dict(patch_size=2, in_chans=1, embed_dim=64),
        "cifar10": dict(patch_size=4, embed_dim=48),
        "mnist": dict(patch_size=7, in_chans=1, embed_dim=28),
        "imagenet": dict(patch_size=16, embed_dim=48),
        "finetune": dict(patch_size=16, embed_dim=48),
    }[name.split("_")[0]]
    torch.manual_seed(0)
    save_model(timm.create_model("vit_tiny_patch16_224", **options), folder / "teacher")
    return TimmVit(model=str(folder / "teacher"))


@pytest.mark.parametrize("path", LAUNCHERS, ids=name_of)
def test_launcher_is_one_that_accelerate_reads(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.stem in ("cpu", "single_gpu") else 2)
    assert config.mixed_precision == "no", "the recipe decides"
    assert f"recipes/accelerate/{path.name}" in path.read_text(), "the header comment holds the command"


def test_the_recipe_s_precision_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate passes its configuration's precision on as an environment variable."""
    code = (
        "from transmamba.runs.run import make_accelerator; from transmamba.config import load as configs; "
        "from transmamba.runs.recipe import Recipe; import sys; "
        "recipe = configs.load(Recipe, sys.argv[1], ['trainer.precision=bf16']); "
        "print(make_accelerator(recipe).mixed_precision)"
    )
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    done = fresh_process.run(code, RECIPES[0])
    assert done.stdout.strip() == "bf16", done.stderr


@pytest.mark.slow  # tests/cli has it of the command; this is Accelerate's
def test_accelerate_launch_says_a_mistake_in_one_line(tmp_path: Path) -> None:
    """With --quiet there is nothing but our own line; accelerate turns every failure into exit status 1."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
    command += ["--config_file", str(ROOT / "recipes/accelerate/cpu.yaml"), str(ROOT / "recipes/distill.py")]
    done = subprocess.run(
        [*command, "--config", str(tmp_path / "nothing.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("config error: ") and len(done.stderr.splitlines()) == 1, done.stderr


# --- scripts ---


class Done(NamedTuple):
    code: int
    out: str
    err: str


Script = Callable[..., Done]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """script("study.py", "x.yaml"): as `python scripts/study.py x.yaml`, in this process."""

    def run(name: str, *words: Any) -> Done:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        monkeypatch.syspath_prepend(str(ROOT / "scripts"))  # where a script finds its neighbours
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        return Done(int(stop.value.code or 0), *capsys.readouterr())

    return run


def write_metrics(folder: Path, *losses: float, seconds: float = 1.0) -> Path:
    folder.mkdir()
    rows = [{"step": 10 * i, "loss": loss, "seconds": seconds * i} for i, loss in enumerate(losses, start=1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_compare_losses(script: Script, tmp_path: Path) -> None:
    old = write_metrics(tmp_path / "old", 3.0, 2.0, 1.0)
    slower = write_metrics(tmp_path / "slower", 3.0, 2.0, 1.0, seconds=9.0)
    done = script("compare_losses.py", old, slower / "metrics.jsonl")
    assert (done.code, done.out) == (0, "identical: 3 rows to step 30\n")

    other = write_metrics(tmp_path / "other", 3.0, 2.0000001, 1.5)
    done = script("compare_losses.py", old, other)
    assert done.code == 1
    assert done.out.startswith("first differing step: 20 (2 of 3 rows differ)\n  loss: 2.0 in OLD")
    done = script("compare_losses.py", old, other, "--tolerance", "1e-3")
    assert done.out.startswith("first differing step: 30")

    shorter = write_metrics(tmp_path / "shorter", 3.0)
    assert "logged in OLD alone" in script("compare_losses.py", old, shorter).out
    done = script("compare_losses.py", old, tmp_path / "nothing")
    assert done.code == 2 and done.err.count("\n") == 1


def test_the_demo_s_three_vims_differ_in_method_alone() -> None:
    """The same images, model, steps, batch and seed; weights that are taken over are the student's alone."""
    vims = [
        load(ROOT / f"recipes/configs/{name}.yaml")
        for name in ("digits_vit_to_vim", "digits_scratch", "digits_kl")
    ]
    for vim in vims[1:]:
        own = ("output_dir", "stages", "init", "task")
        same = {
            field.name: getattr(vims[0], field.name)
            for field in dataclasses.fields(Recipe)
            if field.name not in own
        }
        assert same == {name: getattr(vim, name) for name in same}
        assert dataclasses.replace(vim.task, mixup=vims[0].task.mixup) == vims[0].task
        assert vim.init is None and sum(stage.steps or 0 for stage in vim.stages) == sum(
            stage.steps or 0 for stage in vims[0].stages
        )
    assert vims[0].init is not None


SHORT = "--teacher stages.0.epochs=null --teacher stages.0.steps=1 --teacher student.kwargs.depth=1"
SHORT += (
    " --student stages.0.steps=1 --student stages.1.steps=1 --scratch stages.0.steps=1 --kl stages.0.steps=1"
)


@pytest.mark.slow
def test_digits_crossval(script: Script, tmp_path: Path) -> None:
    """Two folds of single steps: every image is tested once, and a second call trains nothing."""
    small = [
        f"--{vim} student.kwargs.{size}"
        for vim in ("student", "scratch", "kl")
        for size in ("embed_dim=16", "depth=2")
    ]
    words = ["--folds", "2", "--output", str(tmp_path / "out"), *" ".join([SHORT, *small]).split()]
    assert script("digits_crossval.py", *words).code == 0
    summary = json.loads((tmp_path / "out" / "crossval.json").read_text())
    assert summary["images"] == 1797
    assert list(summary["top1"]) == ["teacher", "student", "scratch", "kl"]
    gap = summary["student_minus_scratch"]
    assert gap["mean"] == pytest.approx(summary["top1"]["student"] - summary["top1"]["scratch"])
    assert gap["low"] <= gap["mean"] <= gap["high"]

    rows = tmp_path / "out" / "fold-1" / "kl" / "metrics.jsonl"
    first = rows.stat().st_mtime_ns
    assert script("digits_crossval.py", *words).code == 0
    assert rows.stat().st_mtime_ns == first
