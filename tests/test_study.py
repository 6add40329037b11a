"""scripts/study.py: which cells, what they need, what a kill leaves, and that a cell's folder rebuilds it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
import yaml
from safetensors.torch import load_file

from transmamba.config import load as configs
from transmamba.errors import UserError
from transmamba.runs.recipe import Recipe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import study as studies  # noqa: E402
import study_file  # noqa: E402
import study_runner  # noqa: E402


def plain(**changes: Any) -> dict[str, Any]:
    return {
        "output_dir": "runs/s",
        "common": ["config=c.yaml", "a=1"],
        "first": {
            "teacher": ["config=t.yaml"],
            "head.${share}": ["config=h.yaml", "model=${output_dir}/teacher", "fraction=${part}"],
        },
        "axes": {
            "arm": {"free": ["x=0"], "taught": ["x=1", "teacher.model=${output_dir}/head.${share}/student"]},
            "share": {
                "5%": {"let": {"part": 0.05}, "set": ["fraction=${part}"]},
                "all": {"let": {"part": 1}},
            },
        },
        "report": {"metric": "top1", "rows": ["arm"], "columns": "share"},
        **changes,
    }


def report(**changes: Any) -> dict[str, Any]:
    return {"report": {"metric": "top1", "rows": ["arm"], "columns": "share", **changes}}


def test_a_cell_is_its_labels_and_their_overrides() -> None:
    study = studies.Study(plain(), ["b=2"])
    assert [".".join(cell.values()) for cell in study.cells] == [
        "free.5%", "free.all", "taught.5%", "taught.all",
    ]  # fmt: skip
    assert study.run_of(study.cells[0]) == studies.Run(
        "free.5%", ("config=c.yaml", "a=1", "x=0", "fraction=0.05", "b=2")
    )


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `plain`'s recipes, and the working directory."""
    monkeypatch.chdir(tmp_path)
    student = {"name": "vim", "model": "m", "kwargs": {"depth": 2}}
    for name in "cth":
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"student": student, "wandb": {"mode": "on"}}))
    monkeypatch.setattr(study_file, "_read_recipe", study_file._read_recipe.__wrapped__)
    return tmp_path


def test_a_folder_on_the_command_line_is_the_study_s_and_none_is_a_run_s() -> None:
    """Every cell would otherwise be told to write into the same one."""
    study = studies.Study(plain(), ["b=2", "output_dir=elsewhere"])
    runs = [study.run_of(cell) for cell in study.cells]
    assert study.root == Path("elsewhere")
    assert not any(item.startswith("output_dir") for run in runs for item in run.overrides)
    assert "teacher.model=elsewhere/head.all/student" in runs[-1].overrides
    moved = studies.Study(plain(every_cell=[{"output_dir": "x"}]))
    with pytest.raises(ValueError, match=r'output_dir="x": every run is in the study'):
        moved.run_of(moved.cells[0])


@pytest.mark.usefixtures("recipes")
def test_a_run_waits_for_what_its_recipe_names_and_for_what_that_names() -> None:
    study = studies.Study(plain())
    free, _, taught, other = study.cells
    assert [run.name for run in study.chain(free)] == ["free.5%"]
    assert [run.name for run in study.chain(other)] == ["teacher", "head.all", "taught.all"]
    teacher, head, own = study.chain(taught)
    assert (teacher.name, head.name, own.name) == ("teacher", "head.5%", "taught.5%")
    assert head.overrides[2:] == ("config=h.yaml", "model=runs/s/teacher", "fraction=0.05")
    with_own_teacher = studies.Study(plain(), ["teacher.model=elsewhere"])
    assert len(with_own_teacher.chain(with_own_teacher.cells[2])) == 1


@pytest.mark.usefixtures("recipes")
def test_an_arm_without_a_teacher_does_not_wait_for_its_setting_s() -> None:
    axes = {
        "setting": {"a": ["teacher.model=${output_dir}/teacher"], "b": ["teacher.model=runs/s/teacher2"]},
        "arm": {"full": [], "scratch": ["teacher=null"], "late": ["student.model=./runs/s/teacher/student"]},
    }
    first = {"teacher": [], "teacher2": []}
    report = {"metric": "top1", "rows": ["arm"], "columns": "setting"}
    study = studies.Study(plain(axes=axes, first=first, report=report))
    waits = {".".join(cell.values()): [run.name for run in study.chain(cell)][:-1] for cell in study.cells}
    assert waits == {
        "a.full": ["teacher"], "a.scratch": [], "a.late": ["teacher"],
        "b.full": ["teacher2"], "b.scratch": [], "b.late": ["teacher", "teacher2"],
    }  # fmt: skip


@pytest.mark.usefixtures("recipes")
def test_common_is_of_every_run_and_every_cell_of_cells() -> None:
    common = ["config=c.yaml", {"wandb": None, "trainer": {"x": 1, "y": 1}}]
    first = {
        "teacher": ["config=t.yaml", {"trainer": {"y": 2}}],
        "head.${share}": ["model=${output_dir}/teacher"],
    }
    study = studies.Study(plain(common=common, every_cell=[{"trainer": {"y": 3}}], first=first))
    teacher, head, cell = [study.resolved(run)[0] for run in study.chain(study.cells[2])]
    assert [each["trainer"] for each in (teacher, head, cell)] == [
        {"x": 1, "y": 2},
        {"x": 1, "y": 1},
        {"x": 1, "y": 3},
    ]
    assert all(each["wandb"] is None for each in (teacher, head, cell))
    assert [run.config for run in study.chain(study.cells[2])] == ["t.yaml", "c.yaml", "c.yaml"]


def test_a_student_keeps_its_options_or_its_loss_is_said(
    recipes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies.Study, "check", lambda *_: None)  # the files there are no whole recipes
    axes = {"student": {"same": [{"student": {"model": "n"}}], "other": [{"student": {"name": "ssd_vit"}}]}}
    axes["seed"] = {"s0": [], "s1": []}
    report = {"metric": "top1", "rows": ["student"], "columns": "seed"}
    data = plain(axes=axes, first={}, report=report)
    study = studies.Study(data)
    students = [study.resolved(study.run_of(cell))[0]["student"] for cell in study.cells]
    assert students[0] == {"name": "vim", "model": "n", "kwargs": {"depth": 2}}
    assert students[2] == {"name": "ssd_vit"}
    (recipes / "study.yaml").write_text(yaml.safe_dump(data))
    assert studies.main(["study.yaml", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert (
        said.err
        == "study.yaml: student: 'ssd_vit' takes the place of 'vim', whose kwargs, model are dropped\n"
    )
    assert said.out.endswith("4 of 4 runs left\n")


class Recorder(studies.Runner):
    """Notes when a run begins and ends, in place of running it."""

    events: list[str]

    def _run(self, run: Any) -> bool:
        self.events.append(f"+{run.name}")
        time.sleep(0.05)
        self.events.append(f"-{run.name}")
        return run.name != "broken"


def test_runs_wait_for_what_they_need_and_shared_ones_run_once(tmp_path: Path) -> None:
    """With one job and with many, on a stand-in for the recipe: the order in which runs begin and end."""
    for jobs in (1, 5):
        runner = Recorder(tmp_path, jobs, 1, [])
        events = runner.events = []
        named = {name: studies.Run(name, ()) for name in ("t", "h1", "h2", "broken", "a", "b", "c", "d")}
        chains = [["t", "h1", "a"], ["t", "h1", "b"], ["t", "h2", "c"], ["broken", "d"]]
        failed = runner.run_all([[named[name] for name in chain] for chain in chains])
        assert [run.name for run in failed] == ["broken", "d"] and "+d" not in events
        assert sorted(event for event in events if event[0] == "+") == [
            "+a", "+b", "+broken", "+c", "+h1", "+h2", "+t",
        ]  # fmt: skip
        for need, run in (("t", "h1"), ("t", "h2"), ("h1", "a"), ("h1", "b"), ("h2", "c")):
            assert events.index(f"-{need}") < events.index(f"+{run}")
        if jobs == 1:
            assert events[0::2] == ["+t", "+h1", "+a", "+b", "+h2", "+c", "+broken"], "earlier chains first"


def test_nothing_goes_on_behind_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, or a test's time limit: what runs is asked to end, and nothing new is begun."""
    script = tmp_path / "recipe.py"
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(study_runner, "RECIPE_SCRIPT", script)
    runner = study_runner.Runner(tmp_path / "runs", 2, 1, [])
    begun: list[subprocess.Popen[Any]] = []
    begin = runner._begin

    def watched(*arguments: Any, **pipes: Any) -> Any:
        if (process := begin(*arguments, **pipes)) is not None:
            begun.append(process)
            if len(begun) == 2:
                # to the thread that waits for the runs, wherever it is
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return process

    monkeypatch.setattr(runner, "_begin", watched)
    # a shell's background job has Ctrl-C switched off
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.run_all([[study_file.Run(f"run{k}", ("config=x",))] for k in range(5)])
        assert [process.wait(20) for process in begun] == [-signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGINT, before)
        runner.stop()


def test_blocks_of_cells_are_priorities() -> None:
    study = studies.Study(plain(cells=[{"arm": "taught", "share": "all"}, {"share": ["5%", "all"]}]))
    assert [".".join(cell.values()) for cell in study.cells] == [
        "taught.all", "free.5%", "free.all", "taught.5%",
    ]  # fmt: skip


ONE_AXIS = {"first": {}, "report": {"metric": "top1", "rows": ["arm"], "columns": "arm"}}


@pytest.mark.usefixtures("recipes")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {**ONE_AXIS, "axes": {"arm": {"a": {"need": []}}}},
            "unknown key 'need'; write overrides, or set, let",
        ),
        (
            {**ONE_AXIS, "axes": {"arm": {"a": {"needs": []}}}},
            "leave needs out; a run waits for those of first",
        ),
        ({"cells": [{"arms": "free"}]}, "unknown axis 'arms'; known: arm, share"),
        ({"cells": [{"share": "6%"}]}, "share has no '6%'; known: 5%, all"),
        ({"commom": []}, "unknown key 'commom'; known: axes, cells"),
        ({"axes": {"arm": ["a"]}}, "axes: arm is no mapping"),
        ({"axes": {"arm": {"a": "x=1"}, "share": {"all": []}}}, "overrides 'x=1' are text; write a list"),
        ({"common": ["x=${shar}"]}, "${shar} is no axis"),
        ({"common": ["a=1"]}, "free.5%: no recipe; add an override config=RECIPE.yaml"),
        ({"common": ["config=none.yaml"]}, "none.yaml: no such file"),
        (
            {"common": ["config=t.yaml", "student.kwargs.depth.a=1"]},
            "free.5%: override student.kwargs.depth.a=1: ",
        ),
        ({"first": ["teacher"]}, "first is no mapping of names to overrides"),
        ({"cells": {"arm": "free"}}, "cells is no list of axis: labels"),
        ({"axes": {"arm": {"a": {"let": ["x"]}}}}, "axes: let is ['x']; write name: value"),
        (report(rows=["arms"]), "unknown axis 'arms'"),
        (report(rows="arm"), "rows is 'arm'; write a list of axes"),
        (report(compare=[]), "report: unknown key 'compare'"),
        (report(better="more"), "better is 'more'; write up or down"),
        (report(baseline="free"), "baseline is 'free'; write axis: label, or teacher or scratch"),
        (report(baseline={"arm": "kl"}), "baseline arm: kl is no label of rows or columns"),
        ({"report": None}, "report: missing, or no mapping"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(plain(output_dir=str(tmp_path / "out"), **changes)))
    assert studies.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A study of two tiny cells on synthetic images; one needs a teacher, which the study trains."""
    recipe = configs.dump(harness.tiny_recipe(tmp_path))
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(recipe))
    teacher = {key: recipe[key] for key in ("output_dir", "task", "trainer")}
    teacher["student"] = {"name": "timm", "model": "vit_tiny_patch16_224", "kwargs": harness.TEACHER}
    teacher["stages"] = [{"name": "labels", "losses": ["cross_entropy"], "steps": 3}]
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(teacher))
    labels = [{"name": "labels", "losses": ["cross_entropy"], "steps": 6}]
    study = {
        "output_dir": str(tmp_path / "out"),
        "first": {"teacher": [f"config={tmp_path / 'teacher.yaml'}"]},
        "axes": {
            "arm": {
                "full": [f"config={tmp_path / 'student.yaml'}", "teacher.model=${output_dir}/teacher"],
                "scratch": [
                    f"config={tmp_path / 'student.yaml'}", "init=null", f"stages={json.dumps(labels)}",
                ],
            },
            "seed": {"s0": ["seed=0"]},
        },
        "report": {"metric": "top1", "rows": ["arm"], "columns": "seed"},
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def start(path: Path, jobs: int = 2) -> BaseProcess:
    """The script in a process that has imported already, its cells in processes of their own. In a process
    group of its own, so that a kill reaches the cells as a job scheduler's does."""
    return harness.start(_study, str(path), "--jobs", str(jobs))


def _study(*words: str) -> None:
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    assert studies.main([*words]) == 0


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finished(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.parent.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.glob("*/results.json")
    }


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As cells have by default: more of them round sums otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_dry_run_lists_what_is_left_and_begins_nothing(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = tmp_path / "out" / "full.s0"
    done.mkdir(parents=True)
    (done / "results.json").write_text("{}")
    assert studies.main([str(small), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["to run  teacher", "finished  full.s0"] and lines[-1] == "2 of 3 runs left"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"full.s0"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('stages=[{"losses": ["kl"], "steps": 6, "rates": {"mixer": 2}}]', "stages.0.rates.mixer: no group"),
        ('stages=[{"losses": ["kl"], "steps": 6, "trainable": "hed"}]', "did you mean 'head'"),
        ("stages.0.lrr=1", "stages.0.lrr: unknown key; did you mean 'lr'"),
    ],
)
@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_recipes_with_mistakes_are_refused_before_the_first_is_run(
    words: tuple[str, ...],
    override: str,
    said: str,
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = yaml.safe_load(small.read_text())
    study["axes"]["arm"]["full"].append(override)
    small.write_text(yaml.safe_dump(study))
    assert studies.main([str(small), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "full.s0: " in error and said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_study_goes_on_and_a_cell_rebuilds_from_its_config(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(small, jobs=1)
    wait_for(lambda: len(finished(out)) >= 2 or process.exitcode is not None)
    assert process.exitcode is None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    before = finished(out)
    assert len(before) == 2, "the teacher and one cell"
    harness.finish(start(small), timeout=240)
    after = finished(out)
    assert set(after) == {"teacher", "full.s0", "scratch.s0"}
    assert {name: after[name] for name in before} == before, "no finished run is repeated"
    assert (out / "table.md").read_text().count("\n| ") == 2

    recipe = configs.load(Recipe, out / "full.s0" / "config.yaml", [f"output_dir={tmp_path / 'again'}"])
    again = harness.run_quietly(recipe)
    old = json.loads(after["full.s0"][1])
    assert harness.without_timing(again) == harness.without_timing(old)
    mine, theirs = (
        load_file(folder / "student" / "model.safetensors")
        for folder in (tmp_path / "again", out / "full.s0")
    )
    assert mine.keys() == theirs.keys() and all(bool((mine[k] == theirs[k]).all()) for k in mine)


def test_a_cell_that_another_process_is_in_is_left_alone(small: Path, tmp_path: Path) -> None:
    """A study killed without its cells leaves them running: begun again, it does not run them twice."""
    out = tmp_path / "out"
    process = start(small)
    wait_for(lambda: list(out.glob("*/.lock")))
    os.kill(process.pid, signal.SIGKILL)
    (running,) = {path.parent for path in out.glob("*/.lock")}
    recipe = configs.load(Recipe, running / "config.yaml")
    with pytest.raises(UserError, match="in use by another process"):
        harness.run_quietly(recipe)
    with pytest.raises(UserError, match="in use by another process"):
        harness.run_quietly(recipe, overwrite=True)
    wait_for((running / "results.json").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert (running / "results.json").exists()


def test_sigterm_saves_the_cells_and_begins_no_other(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(small)
    wait_for(lambda: list(out.glob("*/metrics.jsonl")))
    process.terminate()
    process.join(timeout=120)
    time.sleep(0.5)
    running = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout
    assert not running.strip(), "every cell has ended"
    assert len(finished(out)) < 3


def test_overrides_may_be_mappings() -> None:
    data = plain(common=["config=c.yaml", {"b.c": 0.5, "stages": [{"name": "x", "share": "${part}"}]}])
    study = studies.Study(data)
    run = study.run_of(study.cells[0])
    assert run.overrides[:3] == ("config=c.yaml", "b.c=0.5", 'stages=[{"name": "x", "share": "0.05"}]')


def test_gpus_that_are_not_here_are_a_mistake(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything runs; one that is here is that run's alone."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(studies.Runner, "run_all", lambda *_: pytest.fail("something ran"))

    def see(count: int) -> None:
        def counted() -> int:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
            return sum(each in map(str, range(count)) for each in visible.split(","))

        monkeypatch.setattr(torch.cuda, "device_count", counted)

    for count, asked, said in (
        (0, "0,1", "no GPU 0, 1 on this machine; it has none: leave --devices out to run on the CPU"),
        (2, "0, 2", "no GPU 2 on this machine; write some of 0, 1"),
        (2, "cuda:0", "no GPU cuda:0 on this machine; write some of 0, 1"),
    ):
        see(count)
        assert studies.main([str(small), "--devices", asked]) == 2
        assert capsys.readouterr().err == f"{small}: --devices {asked}: there is {said}\n"
        assert not list(tmp_path.glob("**/*.log")) and os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert studies.devices_of("0, 1,0") == ["0", "1", "0"] and studies.devices_of("") == []


def test_labels_that_no_cell_has_are_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(plain(output_dir=str(tmp_path / "out"))))
    assert studies.main([str(path), "--only", "nosuch"]) == 2
    assert "no cell has all of the labels nosuch" in capsys.readouterr().err
    path.write_text("")
    assert studies.main([str(path)]) == 2
    assert "a study is a mapping" in capsys.readouterr().err
    path.write_text("axes: {a: [")
    assert studies.main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        studies.main([str(path), "--jobs", "0"])
    assert "'0'; write a number of at least 1" in capsys.readouterr().err
