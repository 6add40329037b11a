"""The command line: every verb; every mistake a user can make ends in one clear line and exit status 2."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fresh_process
import numpy as np
import pytest
import timm
import torch
import yaml
from harness import TEACHER, VIM, tiny_recipe, tiny_vit
from PIL import Image
from safetensors import SafetensorError

import transmamba
from transmamba.cli import launch
from transmamba.cli import main as cli
from transmamba.cli.mistakes import guarded
from transmamba.config import load as configs
from transmamba.config.registry import STUDENTS
from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError
from transmamba.evaluation.classification import ClassificationEvaluator
from transmamba.reporting.table import results_table
from transmamba.runs.folder import claim_folder
from transmamba.runs.recipe import Recipe

ROOT = Path(__file__).parents[2]
SYNTHETIC = ["--data", "synthetic", "num_train=12", "num_test=8", "num_classes=3", "size=8"]
# images a step, all at once
TWO = ["trainer.global_batch=2", "trainer.micro_batch=2"]
STUDENT = ["--student", "vim_micro_patch2_8", *(f"{key}={value}" for key, value in VIM.items())]


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """command("list", "losses"): `transmamba list losses` in-process; recipe=True: recipes/distill.py."""

    def run(*words: Any, recipe: bool = False) -> Done:
        capfd.readouterr()
        main: Callable[[Sequence[str]], int] = launch.main if recipe else cli.main
        try:
            code: Any = main([str(word) for word in words])
        except SystemExit as stop:  # argparse's own way
            code = stop.code
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return run


def assert_mistake(done: Done, *says: str) -> None:
    assert done.code == 2, done
    assert "Traceback" not in done.err + done.out
    lines = done.err.strip().splitlines()
    assert lines[-1].startswith("error: ") or lines[0].startswith("config error: "), done.err
    if lines[-1].startswith("error: "):
        messages = [line for line in lines if line.startswith("error: ")]
        assert len(messages) == 1, done.err
    for text in says:
        assert text in done.err, f"{text!r} is not in {done.err!r}"


# --- verbs ---


def test_list_names_every_part(command: Command) -> None:
    done = command("list")
    assert done.code == 0
    for name in ("timm_vit", "ssd_vit", "bidirectional", "image_classification", "hf_dataset"):
        assert name in done.out
    assert "vim_tiny_patch16_224" in done.out
    assert "vim_tiny" not in command("list", "losses").out


def test_help_names_every_verb(command: Command) -> None:
    done = command("--help")
    assert done.code == 0
    assert all(f"  {verb}" in done.out for verb in cli.VERBS)
    assert "--student" in command("convert", "--help").out


def test_convert_writes_a_student_that_loads(command: Command, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("convert", teacher, out, *STUDENT, "proj_bias=true")
    assert done.code == 0, done.err
    assert "copied" in done.out and "parameters covered" in done.out
    assert {path.name for path in out.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "README.md",
        "subclone.json",
    }
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    assert model.layers[0].mixer.in_proj.bias is not None


def test_convert_reports_as_json_and_ranks_by_activation(
    command: Command, teacher: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(12) % 3
    np.savez(data, train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    done = command("convert", teacher, tmp_path / "out", *STUDENT, "--data", data, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert 0 < report["covered"] < 1 and report["counts"]["fresh"] > 0
    assert any(name.endswith("norm.bias") for name in report["dropped_biases"])


def test_convert_gives_the_reader_its_options(command: Command, teacher: Path, tmp_path: Path) -> None:
    words = ("convert", teacher, tmp_path / "out", *STUDENT, "--json")
    tall = ("--data", "synthetic", "data.size=8", "data.num_classes=3")
    done = command(*words, *tall, "data.num_train=20")
    assert done.code == 0, done.err
    assert_mistake(command(*words, *tall, "data.num_trian=20"), "num_trian", "num_train")
    assert_mistake(command(*words, "data.num_train=20"), "data.num_train=20 is the reader's", "--data")
    assert_mistake(command(*words, *tall, "data.name=digits"), "name=digits", "says that already")
    (tmp_path / "images" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "train" / "cat" / "1.png").touch()
    guessed = command(*words, "--data", tmp_path / "images", "data.root=/nowhere")
    assert_mistake(guessed, "root=/nowhere", "already")
    other = ("convert", teacher, tmp_path / "other", "model=vim_tiny_patch16_224")
    assert_mistake(command(*other), "model is no option of a student")
    assert not (tmp_path / "other").exists()


def test_convert_starts_as_a_recipe_s_init_would(
    command: Command, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More images than the 256 that rank and average: both look at the first of them."""
    build = STUDENTS["vim"].build

    def seeded(*arguments: Any, **kwargs: Any) -> Any:
        torch.manual_seed(0)  # what is fresh is the same
        return build(*arguments, **kwargs)

    monkeypatch.setattr(STUDENTS["vim"], "build", seeded)
    data = tmp_path / "data.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(300) % 3
    np.savez(data, train_images=pixels, train_labels=labels, test_images=pixels[:12], test_labels=labels[:12])
    flags = ("--fold", "--average")
    done = command("convert", teacher, tmp_path / "out", *STUDENT, "--data", data, *flags)
    assert done.code == 0, done.err
    recipe = tiny_recipe(
        tmp_path,
        task=dict(name="image_classification", data=dict(name="npz", path=str(data))),
        teacher__model=str(teacher),
        student=dict(name="vim", model=STUDENT[1], kwargs=VIM),
        init=dict(layers="all", fold=True, mimic=True, average=True),
        stages=[dict(name="align", losses=["mixer"], steps=1, lr=1e-30, min_lr=0.0)],  # as it began
        trainer__eval_batch_size=64,
    )
    transmamba.distill(recipe)
    expected, found = (transmamba.load_student(tmp_path / name) for name in ("run", "out"))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=0, atol=1e-20)


def test_convert_script_is_the_verb(teacher: Path, tmp_path: Path) -> None:
    script = ROOT / "scripts/convert_checkpoint.py"
    done = fresh_process.run_script(script, teacher, tmp_path / "out", "--student", "vimm")
    assert_mistake(Done(done.returncode, done.stdout, done.stderr), "unknown student 'vimm'")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("report_of_a_run")
def test_distil_evaluate_and_report(command: Command, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = command("distill", "--config", recipe, "stages.0.steps=1", "stages.1.steps=2")
    assert done.code == 0, done.err
    assert "teacher" in done.out and f"student: {run}/student" in done.out
    again = command("--config", recipe, "stages.0.steps=1", "stages.1.steps=2", recipe=True)
    assert again.out == done.out, "a finished run is found, not repeated"
    assert "finished before; --overwrite starts anew" in again.err and "finished before" not in done.err

    results = json.loads((run / "results.json").read_text())
    for model in (run, run / "student"):
        done = command("evaluate", model, "--teacher", tmp_path / "teacher", "--json")
        assert done.code == 0, done.err
        measured = json.loads(done.out)
        assert measured["agreement"] == results["agreement"]
        for name in ("student", "teacher"):
            for metric in ("top1", "top5", "ece", "params"):
                assert measured[name][metric] == pytest.approx(results[name][metric])
    assert "student" in command("evaluate", run, "--teacher", tmp_path / "teacher").out
    alone = command("evaluate", run).out
    assert alone.splitlines()[-1].startswith("model ") and "student" not in alone

    (run / "report.html").unlink()
    done = command("report", run)
    assert done.code == 0 and (run / "report.html").is_file()


def test_evaluate_measures_a_transformer_too(command: Command, teacher: Path) -> None:
    done = command("evaluate", teacher, *SYNTHETIC, "--split", "train", "--batch-size", "5", "--json")
    assert done.code == 0, done.err
    assert set(json.loads(done.out)) == {"student"}


def test_bench_compares_with_plain_training(command: Command, recipe: Path) -> None:
    done = command("bench", "recipe", "--config", recipe, "--steps", "1", "--json", *TWO)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["overhead"] > 0 and result["batch_size"] == 2
    table = command("bench", "recipe", "--config", recipe, "--steps", "1", *TWO).out
    assert "cross_entropy_step" in table


def test_bench_names_the_recipe_of_a_teacher_that_is_not_made(command: Command, recipe: Path) -> None:
    words = ("bench", "recipe", "--config", recipe, "teacher.model=runs/absent", "teacher_recipe=a/b.yaml")
    assert_mistake(command(*words), "runs/absent", "made by a/b.yaml: run that first")
    other = (
        "bench",
        "recipe",
        "--config",
        recipe,
        "teacher_recipe=a/b.yaml",
        "task.data={name: npz, path: absent.npz}",
    )
    done = command(*other)
    assert_mistake(done, "absent.npz")
    assert "run that first" not in done.err, "it is the data that is missing"


def test_bench_takes_a_recipe_with_standardised_features(command: Command, recipe: Path) -> None:
    losses = "stages.1.losses=[{name: feature, standardize: true}]"
    done = command("bench", "recipe", "--config", recipe, "--steps", "1", *TWO, losses)
    assert done.code == 0, done.err


def test_a_report_needs_a_run(command: Command, teacher: Path, tmp_path: Path) -> None:
    for folder in (teacher, tmp_path):
        assert_mistake(command("report", folder), "holds no run")
        assert not (folder / "report.html").exists()
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert_mistake(command("report", tmp_path), "measured nothing yet")


def test_bench_puts_students_beside_their_teacher(command: Command, teacher: Path) -> None:
    words = ("bench", "inference", "--teacher", teacher, "--sizes", "8,16", "--tokens", "40", "--steps", "1")
    done = command(*words, "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert [(row["size"], row["model"]) for row in rows] == [
        (size, model) for size in (8, 16) for model in ("teacher", "vim", "ssd_vit")
    ]
    patch = TEACHER["patch_size"]
    for row in rows:
        assert row["tokens"] == (row["size"] // patch) ** 2 + 1 and row["images"] == max(
            40 // row["tokens"], 1
        )
        own = next(r for r in rows if r["size"] == row["size"] and r["model"] == "teacher")
        assert row["speed"] == pytest.approx(own["seconds"] / row["seconds"])
    assert len(command(*words).out.splitlines()) == 7
    assert_mistake(command(*words, "--sizes", "8x"), "--sizes: '8x'")
    assert_mistake(command(*words, "--students", "vimm"), "did you mean 'vim'?")
    for wrong, said in (
        (["--teacher", "resnet18"], "only timm's VisionTransformer"),
        (["--steps", "0"], "steps is 0"),
        (["--tokens", "0"], "tokens is 0"),
        (["--sizes", ""], "--sizes is empty"),
        (["--sizes", "1"], "hold no patch"),
        (["--device", "nowhere"], "device 'nowhere'"),
        (["foo=1"], "foo=1"),
        (["--config", "x.yaml"], "--config: transmamba bench inference takes no such argument"),
    ):
        assert_mistake(command(*words, *wrong), said)


def test_dry_run_prints_the_resolved_recipe(command: Command, recipe: Path, tmp_path: Path) -> None:
    done = command("--config", recipe, "--dry-run", "stages.0.lr=1e-4", recipe=True)
    assert done.code == 0
    assert yaml.safe_load(done.out)["stages"][0]["lr"] == 1e-4
    assert not (tmp_path / "run").exists()


# --- mistakes ---


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["distil"], "unknown verb 'distil'; did you mean 'distill'?"),
        (["list", "loss"], "unknown kind 'loss'"),
        (["convert", "deit_smal_patch16_224", "OUT"], "did you mean 'deit_small_patch16_224'?"),
        (["convert", "./nothing", "OUT"], "'./nothing': no such folder"),
        (["convert", "nobody/nothing", "OUT"], "'nobody/nothing' is no folder here"),
        (["convert", "TEACHER", "OUT", "--student", "vim_micro_patch2_9"], "mean 'vim_micro_patch2_8'?"),
        (["convert", "TEACHER", "OUT", "--student", "ssd_vit", "depht=3"], "'depht'"),
        (["convert", "TEACHER", "OUT", "--student", "ssd_vit", "depth"], "'depth' is no key=value"),
        (["convert", "TEACHER", "OUT", "--student", "ssd_vit", "depth=[1"], "'[1' is no YAML value"),
        (["convert", "TEACHER", "OUT", "--student", "timm"], "'timm' takes no weights of a teacher"),
        (["convert", "TEACHER", "OUT", "--student", "hf_vit"], "ssd_vit, vim"),
        (
            ["convert", "TEACHER", "OUT", "--data", "/no/such/folder"],
            "/no/such/folder: no such file or folder",
        ),
        (
            ["convert", "TEACHER", "OUT", "--average"],
            "average looks at images; write whose, such as --data",
        ),
        (["convert", "missing.pth", "OUT"], "'missing.pth': no such file"),
        (["evaluate", "/no/such/run"], "/no/such/run"),
        (["evaluate", "TEACHER"], "write --data"),
        (["evaluate", "TEACHER", "--data", "digit"], "did you mean 'digits'?"),
        (["evaluate", "TEACHER", "--data", "digits", "--task", "image_clasification"], "mean 'image_class"),
        (["evaluate", "TEACHER", "--data", "digits", "fodl=1"], "did you mean 'fold'?"),
        (["evaluate", "TEACHER", "--data", "digits", "--device", "gpu"], "device 'gpu'"),
        (["evaluate", "TEACHER", *SYNTHETIC, "--split", "tset"], "split 'tset'"),
        (["evaluate", "TEACHER", *SYNTHETIC, "num_classes=7"], "has 3 classes but the data has 7"),
        (
            ["evaluate", "TEACHER", *SYNTHETIC, "--teacher", "vit_tinny_patch16_224"],
            "mean 'vit_tiny_patch16_2",
        ),
        (["report", "/no/such/run"], "/no/such/run"),
        (["push", "/no/such/run", "me/model"], "no student there"),
        (["distill", "--config", "recipes/configs/digits_vit_to_vin.yaml"], "digits_vit_to_vim.yaml"),
    ],
)
def test_mistake(words: list[str], says: str, command: Command, teacher: Path, tmp_path: Path) -> None:
    names = {"TEACHER": teacher, "OUT": tmp_path / "out"}
    assert_mistake(command(*(names.get(word, word) for word in words)), says)
    assert list(tmp_path.iterdir()) == [], "nothing may be left half-written"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "VERB: missing; see transmamba --help"),
        (["convert", "teacher"], "error: out: missing; see transmamba convert --help"),
        (["convert", "teacher", "out", "--layers", "most"], "'most' is neither all, half nor a number"),
        (["evaluate", "model", "--batch-size", "many"], "--batch-size is 'many'; write a whole number"),
        (["evaluate", "model", "--precision", "fp32"], "--precision is 'fp32'; write one of no, bf16, fp16"),
        (["evaluate", "model", "--batch-size"], "--batch-size: expected one argument; see transmamba eval"),
        (["distill"], "--config"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], says: str, command: Command) -> None:
    done = command(*words)
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("error: ") and says in done.err and done.err.count("\n") == 1


def test_all_typos_of_a_recipe_at_once(command: Command, recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    typos = [
        "student.name=vimm",
        "stages.0.lrr=1",
        "trainer.precision=fp32",
        "stages.1.losses.1=kll",
        "sead=1",
    ]
    done = command("--config", recipe, *typos, recipe=True)
    assert_mistake(done, "5 problems")
    for line in (
        "student: unknown student 'vimm'; did you mean 'vim'?",
        "stages.0.lrr: unknown key; did you mean 'lr'?",
        "trainer.precision: unknown value 'fp32'; here that is 'no'",
        "stages.1.losses.1: unknown loss 'kll'; did you mean 'kl'?",
        "sead: unknown key; did you mean 'seed'?",
    ):
        assert f"\n  {line}" in done.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("teacher.model=/no/such/folder", "'/no/such/folder': no such folder"),
        ("teacher_recipe=/no/such.yaml", "no such file"),
        ("task.data={name: image_folder, root: /no/such/images}", "/no/such/images does not exist"),
        ("task.data.num_classes=5", "teacher has 3 classes but the data has 5"),
        ("student.model=vim_micro_patch2_9", "vim_micro_patch2_8"),
        ("student.kwargs.dpeth=1", "'dpeth'"),
        ("teacher=null", "loss mixer needs"),
    ],
)
def test_mistake_in_a_recipe_claims_nothing(
    override: str, says: str, command: Command, recipe: Path, tmp_path: Path
) -> None:
    """The mended recipe must not be told that its folder holds another run."""
    assert_mistake(command("--config", recipe, override, recipe=True), says)
    assert not (tmp_path / "run").exists()
    claim_folder(tmp_path / "run", configs.load(Recipe, recipe), overwrite=False)


def test_a_run_without_a_student_is_told_from_no_model(
    command: Command, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    claim_folder(run, configs.load(Recipe, recipe), overwrite=False)
    for words in (["inspect", run], ["predict", run, "a.png"], ["convert", run, tmp_path / "out"]):
        assert_mistake(command(*words), "this run has no student: it has not ended")
    (run / "results.json").write_text("{}")
    assert_mistake(command("inspect", run), "this run has ended, and has no student: it left numbers alone")
    for path in run.iterdir():
        path.unlink()
    (run / "config.yaml").write_text("of: another program\n")
    assert_mistake(command("inspect", run), "holds no config.json and no open_clip_config.json")


def test_a_folder_that_holds_another_run(command: Command, recipe: Path, tmp_path: Path) -> None:
    short = ["stages.0.steps=1", "stages.1.steps=1"]
    assert command("--config", recipe, *short, recipe=True).code == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    done = command("--config", recipe, *short, "seed=7", recipe=True)
    assert_mistake(done, "holds another run", "seed: 3 there, 7 here", "--overwrite")
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    assert command("--config", recipe, *short, "seed=7", "--overwrite", recipe=True).code == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["seed"] == 7

    done = command("convert", tmp_path / "teacher", tmp_path / "run" / "student", *STUDENT)
    assert_mistake(done, "is not empty", "--overwrite")


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_an_output_folder_that_cannot_be(place: str, command: Command, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert_mistake(command("--config", recipe, f"output_dir={tmp_path / place}", recipe=True), "file")
    assert_mistake(command("convert", tmp_path / "teacher", tmp_path / place, *STUDENT), "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_teacher_of_another_kind(command: Command, tmp_path: Path) -> None:
    save_model(timm.create_model("resnet10t", num_classes=3), tmp_path / "resnet")
    done = command("convert", tmp_path / "resnet", tmp_path / "out", *STUDENT)
    assert_mistake(done)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_architecture(command: Command, teacher: Path, tmp_path: Path) -> None:
    """A folder whose config.json and model.safetensors do not belong together; an official checkpoint too."""
    save_model(tiny_vit(), tmp_path / "mixed")
    other = {**TEACHER, "embed_dim": 24}
    wrong = timm.create_model("vit_tiny_patch16_224", num_classes=3, **other)
    save_model(wrong, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "mixed" / "model.safetensors")
    assert_mistake(command("evaluate", tmp_path / "mixed", *SYNTHETIC), "mixed")

    torch.save({"model": {"layers.0.mixer.A_b_log": torch.zeros(2)}}, tmp_path / "vim.pth")
    done = command("convert", tmp_path / "vim.pth", tmp_path / "out", "--student", "vim_micro_patch2_8")
    assert_mistake(done, "does not fit vim_micro_patch2_8")
    done = command("convert", tmp_path / "vim.pth", tmp_path / "out", "--mimic")
    assert_mistake(done, "vim.pth is a Vim already, only rewritten")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_architecture(command: Command, recipe: Path, tmp_path: Path) -> None:
    """Resuming is refused: the student in checkpoints/ is not the recipe's."""
    short = ["stages.0.steps=1", "stages.1.steps=1"]
    assert command("--config", recipe, *short, recipe=True).code == 0
    run = tmp_path / "run"
    (run / "results.json").unlink()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    saved["student"]["kwargs"]["embed_dim"] = 10
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    newest = sorted((run / "checkpoints").iterdir())[-1]
    progress = json.loads((newest / "progress.json").read_text())
    (newest / "progress.json").write_text(json.dumps({**progress, "stage_step": 0}))
    done = command("--config", recipe, *short, "student.kwargs.embed_dim=10", recipe=True)
    assert_mistake(done, "does not fit this recipe's student", "--overwrite")


def test_convert_overwrites_models_alone(
    command: Command, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def only_out() -> bool:
        return list(tmp_path.iterdir()) == [out]

    (out / "thesis.txt").write_text("mine")
    done = command("convert", teacher, out, *STUDENT, "--overwrite")
    assert_mistake(done, "holds no model")
    assert (out / "thesis.txt").read_text() == "mine" and only_out()

    (out / "config.json").write_text("{}")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.startswith(".converting-"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        done = command("convert", teacher, out, *STUDENT, "--overwrite")
    assert_mistake(done, "out: cannot be written: Input/output error")
    assert (out / "thesis.txt").read_text() == "mine" and only_out()

    with monkeypatch.context() as patched:
        patched.setattr(
            "transmamba.subcloning.checkpoint.save_model", raising(SafetensorError("os error 28"))
        )
        done = command("convert", teacher, out, *STUDENT, "--overwrite")
    assert_mistake(done, "out: cannot be written: os error 28")
    assert (out / "thesis.txt").read_text() == "mine" and only_out()

    assert command("convert", teacher, out, *STUDENT, "--overwrite").code == 0
    assert (out / "model.safetensors").is_file() and (out / "thesis.txt").read_text() == "mine"
    assert only_out()


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "runs/metrics.jsonl"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_wherever_it_happens(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error)) == 2
    out, err = capfd.readouterr()
    assert_mistake(Done(2, out, err), "error: disk full: ", "earlier checkpoints are whole")
    assert len(err.splitlines()) == 1


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="Input/output"):
        guarded(raising(OSError(errno.EIO, "Input/output error")))


def test_every_process_says_its_mistake_the_first_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("transmamba.cli.mistakes.time.sleep", waited.append)
    for rank, says, waits in (("0", "error: torn.png\n", []), ("3", "[rank 3] error: torn.png\n", [5.0])):
        monkeypatch.setenv("RANK", rank)
        assert guarded(raising(UserError("torn.png"))) == 2
        assert capfd.readouterr().err == says and waited == waits


def test_an_unknown_kernel_path_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSMAMBA_KERNELS", "fast")
    done = command("list")
    assert_mistake(done, "TRANSMAMBA_KERNELS='fast' names no path; write one of reference, ")
    assert done.out == ""
    monkeypatch.setenv("TRANSMAMBA_KERNELS", "reference")
    assert command("list", "losses").code == 0


def test_the_table_has_a_row_a_model_with_memory_and_minutes() -> None:
    row = {"top1": 90.0, "top5": 99.0, "ece": 1.0, "params": 123_456_789, "samples_per_second": 12345.6}
    teacher = {**row, "peak_memory_mb": 1234.5, "minutes": 3.21}
    results = {"teacher": teacher, "student": {**row, "peak_memory_mb": 99999.0}}
    results |= {"agreement": {"agreement": 95.0}}
    table = results_table(results, ClassificationEvaluator.METRICS)
    title, _, first, second = table.replace("│", " ").splitlines()
    assert "peak MiB" in title and title.rstrip().endswith("minutes")
    assert first.split()[-2:] == ["1,234", "3.2"] and second.split()[-2:] == ["99,999", "–"]


def test_printed_commands_launch_quietly() -> None:
    """Without it accelerate's own traceback stands below our one line."""
    pages = [ROOT / "README.md", *ROOT.glob("recipes/*.py"), *ROOT.glob("recipes/configs/*.yaml")]
    for page in pages:
        found = re.findall(r"accelerate launch (\S+)", page.read_text())
        assert found and set(found) == {"--quiet"}, page.name


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Image folders of three classes, one of their training files no image."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee", "cat"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "images/train/bee/broken.png").write_bytes(b"no image")
    return tmp_path / "images"


def test_an_image_that_does_not_decode(
    command: Command, recipe: Path, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    short = ["stages.0.steps=1", "stages.1.steps=1", "trainer.global_batch=10", "trainer.micro_batch=10"]
    data = f"task.data={{name: image_folder, root: {images}}}"
    done = command("--config", recipe, *short, data, recipe=True)
    assert_mistake(done, "broken.png")
    done = command("--config", recipe, *short, data, "task.data.on_error=skip", "--overwrite", recipe=True)
    assert done.code == 0, done.err
    done = command("evaluate", tmp_path / "teacher", "--data", images, "--split", "train", "--json")
    assert_mistake(done, "broken.png")
    skipping = ["--data", images, "on_error=skip", "--split", "train", "--json"]
    assert command("evaluate", tmp_path / "teacher", *skipping).code == 0


def of_its_own(words: list[Any], folder: Path) -> Any:
    command = [sys.executable, ROOT / "recipes" / "distill.py", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def as_a_module(words: list[Any], folder: Path) -> Any:
    program = "import runpy\nrunpy.run_module('transmamba', run_name='__main__', alter_sys=True)"
    return fresh_process.run(program, "distill", *words, folder=folder)


@pytest.mark.parametrize("launched", [of_its_own, as_a_module])
def test_a_process_of_its_own(launched: Callable[..., Any], recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = launched(["--config", recipe, "trainer.mico_batch=2"], tmp_path)
    assert_mistake(
        Done(done.returncode, done.stdout, done.stderr), "trainer.mico_batch", "mean 'micro_batch'?"
    )
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before
