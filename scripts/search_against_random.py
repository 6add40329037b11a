"""Does `transmamba search-peft` find better adapters than random search, and than the best single method?

    python scripts/search_against_random.py recipes/studies/peft_images.yaml --jobs 6 --workers 4 --devices 0

Of a study of adapters to pictures (axes part, task, method, share, rate, seed) it takes recipes and tasks.
First each of the --searched tasks is searched by TPE and at random, with as many trials, on held-out data.
Then OUTPUT/found.yaml is written and run: what was found, beside single methods, on all other tasks of the
study's groups, which no search saw. Single methods have their rates chosen on the tasks that were searched.
Last a page is printed as scripts/study_ranks.py makes it: its claims are the verdict, each with the intervals
of its paired differences. The best single method is beaten where all of them are.

Killed, it goes on with the same command. docs/peft.md has the protocol and what is claimed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import study_ranks
import yaml
from study_file import Label, Study

AXES = {"part", "task", "method", "share", "rate", "seed"}
SAMPLERS = ("tpe", "random")
STUDY = Path(__file__).with_name("study.py")
# evaluations of a trial, at which it may be stopped
LOOKS = 3
RATE = "middle"
# of the CIFAR-10 Vim; the last is as large as a budget of 10 % lets it be
SINGLES = ("lora_x 2%", "lora_in 2%", "conv1d own", "state_offset_h_full own", "lora_x r=48")


class Failed(Exception):
    """A command that ended with an exit status other than 0."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


def recipe_of(study: Study, task: str, row: str) -> dict[str, Any]:
    """What is searched on a task: the recipe of a row as it is measured on held-out data, looked at a few
    times as it is trained. Its adapter is one of those that are tried first."""
    method, _, share = row.partition(" ")
    labels = dict(part="held_out", task=task, method=method, share=share, rate=RATE)
    labels["seed"] = next(iter(study.axes["seed"]))
    recipe, _ = study.resolved(study.run_of({axis: labels[axis] for axis in study.axes}))
    recipe.setdefault("trainer", {})["eval_every"] = max(1, recipe["stages"][0]["steps"] // LOOKS)
    return recipe


def based_on(study: Study, rows: Sequence[str]) -> str:
    """The first of the --single rows that names a share of the study: a size of its own has no recipe there.
    Raises ValueError without one."""
    shares = study.axes["share"]
    row = next((row for row in rows if row.partition(" ")[2] in shares), None)
    if row is None:
        raise ValueError(
            f"--single {', '.join(map(repr, rows))}: one names a share of the study ({', '.join(shares)}), "
            "whose recipe is searched"
        )
    return row


def search(recipe: Mapping[str, Any], folder: Path, sampler: str, arguments: argparse.Namespace) -> None:
    """By `transmamba search-peft`, which says on the standard error stream how far it is."""
    path = folder.with_name(f"{folder.name}.yaml")  # in a folder's name the sampler is behind a dot
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**recipe, "output_dir": str(folder.with_name(f"{folder.name}.run"))}))
    options = {"trials": arguments.trials // 2, "workers": arguments.workers, "seed": arguments.seed}
    options |= {"budget": arguments.budget} if arguments.budget else {}
    options |= {"methods": arguments.methods} if arguments.methods else {}
    words = [f"--{name}={value}" for name, value in {**options, "sampler": sampler}.items()]
    command = ["-m", "transmamba", "search-peft", f"--config={path}", f"--output={folder}", "--json", *words]
    found = json.loads(called(command, arguments.devices, heard=True))
    steps = " + ".join(str(count) for count in found["trials"].values())
    names = ", ".join(method["name"] for method in found["methods"])
    print(
        f"{folder.name}: {found['score']:g} on held-out data with {found['parameters']:,} parameters, of "
        f"{steps} trials: {names}",
        flush=True,
    )


def called(words: Sequence[str], devices: str = "", heard: bool = False) -> str:
    """Run Python with these arguments; what it said on the standard output, where it is `heard`. Raises
    Failed. It is stopped where this process is."""
    seen = {**os.environ, **({"CUDA_VISIBLE_DEVICES": devices} if devices else {})}
    output = subprocess.PIPE if heard else None
    with subprocess.Popen([sys.executable, *words], env=seen, stdout=output, text=True) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.terminate()  # it saves what it has
            raise
    if process.returncode:
        raise Failed(process.returncode)
    return said or ""


def adapter_of(folder: Path) -> dict[str, Any]:
    """What a search found, without what is as it is by default. Raises ValueError where none ended there."""
    try:
        adapter = yaml.safe_load((folder / "best.yaml").read_text())["adapter"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{folder} has no search that has ended ({error}); search again") from None
    return {key: value for key, value in adapter.items() if value}


def single(study: Study, row: str) -> dict[str, Any]:
    """An arm: a row of the study, or `METHOD r=N`, a size of its own with the rates of that method. Raises
    ValueError for what the study does not have."""
    method, _, share = row.partition(" ")
    if method not in study.axes["method"]:
        raise ValueError(f"--single {row!r}: {method!r} is no method of the study")
    label: Label = study.axes["method"][method]
    if share in study.axes["share"]:
        told = list(study.axes["share"][share].set)
    elif "=" in share:
        option, _, size = share.partition("=")
        told = [f"adapter={json.dumps({'methods': [{'name': method, option: int(size)}]})}"]
    else:
        raise ValueError(f"--single {row!r}: write METHOD SHARE, such as lora_x 2%, or METHOD r=48")
    return {"set": [*label.set, *told], "let": dict(label.let)}


def found_study(
    data: Mapping[str, Any], study: Study, searched: Sequence[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """The study of what was found beside single methods. Raises ValueError for what does not fit."""
    root, arms = Path(arguments.output), dict[str, Any]()
    for task in searched:
        rate = recipe_of(study, task, based_on(study, arguments.single))["stages"][0]["lr"]
        for sampler in SAMPLERS:
            adapter = json.dumps(adapter_of(root / f"{task}.{sampler}"))
            arms[f"{task}_{sampler}"] = {"set": [f"adapter={adapter}"], "let": {RATE: f"{rate:e}"}}
    found = list(arms)
    arms |= {row.replace(" ", "_"): single(study, row) for row in arguments.single}
    singles = [arm for arm in arms if arm not in found]
    groups = {
        name: left
        for name, group in data["report"]["ranks"]["groups"].items()
        if (left := [task for task in group if task not in searched])
    }
    others = [task for group in groups.values() for task in group]
    if not others:
        raise ValueError(f"no task is left beside those searched, {', '.join(searched)}")
    seeds = list(study.axes["seed"])[: arguments.seeds]
    by = {"part": "held_out", "seed": seeds[0], "task": list(searched)}
    claims = [
        {"claim": f"the search on {task} found better than {what}", "better": f"{task}_tpe", "than": than}
        for task in searched
        for what, than in (
            ("random search with as many trials", [f"{task}_random"]),
            ("the best single method", singles),
        )
    ]
    axes = {name: data["axes"][name] for name in ("part", "task", "rate", "seed")}
    tables = {key: data["report"][key] for key in ("metric", "better")}
    return {
        **{key: data[key] for key in ("common", "every_cell", "first") if key in data},
        "output_dir": str(root / "found"),
        "axes": {"part": axes["part"], "task": axes["task"], "arm": arms, **axes},
        "cells": [
            {**by, "arm": singles},
            {**by, "arm": found, "rate": RATE},
            *({"part": "test", "task": others, "arm": singles, "seed": seed} for seed in seeds),
            *({"part": "test", "task": others, "arm": found, "rate": RATE, "seed": seed} for seed in seeds),
        ],
        "choose": {"axis": "rate", "by": by, "for": {"part": "test"}},
        "report": {
            **{**tables, "rows": ["arm"], "columns": "task"},
            "ranks": {"groups": groups, "claims": claims},
        },
    }


def run(arguments: argparse.Namespace) -> int:
    """The exit status. Raises ValueError, Failed."""
    data = yaml.safe_load(arguments.study.read_text())
    study = Study(data, arguments.overrides)
    if set(study.axes) != AXES or "ranks" not in study.report:
        raise ValueError(f"a study of adapters is meant, with axes {', '.join(sorted(AXES))} and ranks")
    if arguments.trials < 2 or arguments.trials % 2:
        raise ValueError(f"--trials {arguments.trials}: write an even number, of which each step has half")
    searched = arguments.searched.split(",")
    for task in searched:
        if task not in study.axes["task"]:
            raise ValueError(f"--searched: {task!r} is no task of the study")
    for row in arguments.single:
        single(study, row)
    based, root = based_on(study, arguments.single), Path(arguments.output)
    for task in searched:
        for sampler in SAMPLERS:
            recipe = recipe_of(study, task, based)
            search(recipe, root / f"{task}.{sampler}", sampler, arguments)
    path = root / "found.yaml"
    path.write_text(
        yaml.safe_dump(found_study(data, study, searched, arguments), sort_keys=False, width=10**6)
    )
    words = [str(STUDY), str(path), f"--jobs={arguments.jobs}", f"--devices={arguments.devices}"]
    called([*words, "--keep-process", "--lean", *arguments.overrides], heard=True)
    made = Study(yaml.safe_load(path.read_text()))
    study_ranks.check(made)
    print(study_ranks.page(made, study_ranks.scores_of(made)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--output", default="runs/peft_search", help="where all of it goes")
    parser.add_argument("--searched", default="count,mnist", metavar="TASK,TASK", help="tasks (count,mnist)")
    parser.add_argument("--trials", type=int, default=40, help="of a search, half of them in each step (40)")
    parser.add_argument("--budget", default="10%", help="as search-peft has it (10%%); '' for none")
    parser.add_argument("--methods", default="", metavar="NAME,NAME", help="what is searched among (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the choices (0)")
    parser.add_argument("--workers", type=int, default=1, help="of a search (1)")
    parser.add_argument("--single", action="append", metavar="ROW", help=f"instead of {', '.join(SINGLES)}")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm and task (3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--devices", default="", help="GPUs that all share, such as 0,1")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every recipe")
    arguments = parser.parse_intermixed_args(argv)
    arguments.single = arguments.single or list(SINGLES)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return run(arguments)
    except Failed as failed:
        return failed.status
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"{arguments.study}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
