"""Run a grid of recipes and tabulate it; a killed study goes on where it was.

    python scripts/study.py recipes/studies/mnist.yaml --jobs 6 task.data.path=mnist.npz

Every cell is an ordinary run of `recipes/distill.py` in output_dir/LABEL.LABEL..., so a finished cell is not
repeated, and each can be rebuilt from its own config.yaml. With `--keep-process` a job is one process for all
its runs, which is for runs of seconds (scripts/study_runner.py). A study file names:

output_dir: where the runs go; also on the command line
common:     overrides of every run, those of `first` included
every_cell: overrides of every cell, after `common`
axes:       axis -> label -> overrides (`config=RECIPE` among them), or a mapping of set (overrides) and let
            (values for templates)
first:      runs that others start from, name -> overrides, in the order in which they are made. A run waits
            for those whose folder its recipe names, such as `teacher.model=${output_dir}/NAME`, and for what
            these wait for; with `teacher=null` in its arm a cell waits for no teacher
cells:      which cells, in this order: a list of axis -> label or labels (an axis left out: all of it); by
            default the whole grid
choose:     a label that other runs choose, such as a rate on held-out data: scripts/study_choice.py
report:     the table and the figure: scripts/study_tables.py

An override is text, `key=value`, or a mapping of keys and values; a later one wins. A mapping is merged into
the recipe's own, `{}` empties it, and one that names another part takes that part's place: which options that
drops is said. In names and overrides `${axis}` stands for the cell's label, `${name}` for what a label lets
it be, `${output_dir}` for the study's folder.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import yaml
from study_choice import Choice
from study_file import Cell, Run, Study
from study_runner import Runner
from study_tables import draw, tabulate


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_intermixed_args(argv)
    try:
        study = Study(yaml.safe_load(arguments.study.read_text()), arguments.overrides)
        cells = [cell for cell in study.cells if set(arguments.only) <= set(cell.values())]
        if not cells:
            raise ValueError(f"no cell has all of the labels {', '.join(arguments.only)}")
        choice = Choice.of(study)
        if not arguments.table:
            check_recipes(study, [*choice.before(cells), *cells])
        if arguments.dry_run:
            print("\n".join(planned(study, chains_of(study, choice.open(cells), arguments.study))))
            return 0
        status = 0 if arguments.table else run(study, choice, cells, arguments)
        if line := choice.passed_over(cells):
            print(f"{arguments.study}: {line}", file=sys.stderr)
        report(study, choice.told(cells), arguments)
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"{arguments.study}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--jobs", type=_positive, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a cell")
    parser.add_argument("--devices", default="", help="GPUs that the cells share, such as 0,1")
    parser.add_argument("--keep-process", action="store_true", help="one process a job, for runs of seconds")
    parser.add_argument("--lean", action="store_true", help="keep no weights and reports of finished cells")
    parser.add_argument("--only", action="append", default=[], metavar="LABEL", help="cells with this label")
    parser.add_argument("--table", action="store_true", help="tabulate what is there, run nothing")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="also draw what is there")
    parser.add_argument("--dry-run", action="store_true", help="list what would run, in its order")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    return parser


def chains_of(study: Study, cells: list[Cell], source: Path) -> list[list[Run]]:
    """What each cell waits for, and the cell; options that overrides drop are said, each once."""
    chains = [study.chain(cell) for cell in cells]
    dropped = [line for chain in chains for each in chain for line in study.resolved(each)[1]]
    for line in dict.fromkeys(dropped):
        print(f"{source}: {line}", file=sys.stderr)
    return chains


def check_recipes(study: Study, cells: list[Cell]) -> None:
    """Raises ValueError for a recipe with mistakes: of any label that may be chosen, for which one that will
    be is known only after the runs that choose."""
    for run in dict.fromkeys(each for cell in cells for each in study.chain(cell)):
        study.check(run)


def run(study: Study, choice: Choice, cells: list[Cell], arguments: argparse.Namespace) -> int:
    """Run these cells and what they wait for, those that choose before those that are chosen; the exit
    status. Raises ValueError for GPUs that are not here."""
    devices = devices_of(arguments.devices)
    more = {"keep": arguments.keep_process, "lean": arguments.lean}
    runner = Runner(study.root, arguments.jobs, arguments.threads, devices, **more)
    signal.signal(signal.SIGTERM, runner.stop)
    failed = runner.run_all(chains_of(study, choice.before(cells), arguments.study))
    if choice.axis and not runner.stopping:
        failed += runner.run_all(chains_of(study, choice.chosen(cells), arguments.study))
    if runner.stopping:
        print("stopped; the same command goes on", file=sys.stderr)
    elif failed:
        print(f"{len(failed)} runs failed; see {study.root / failed[0].name}.log", file=sys.stderr)
    return 1 if failed else 0


def devices_of(said: str) -> list[str]:
    """The GPUs of `--devices`. Raises ValueError for one that CUDA would not see if it alone were visible,
    as it is to a run."""
    devices = [device.strip() for device in said.split(",") if device.strip()]
    lacking = [device for device in dict.fromkeys(devices) if not _seen(device)]
    if not lacking:
        return devices
    here = _seen(None)
    known = ", ".join(map(str, range(here)))
    instead = f"write some of {known}" if here else "it has none: leave --devices out to run on the CPU"
    raise ValueError(f"--devices {said}: there is no GPU {', '.join(lacking)} on this machine; {instead}")


def _seen(device: str | None) -> int:
    """How many GPUs CUDA sees where it may see `device` alone, None for all of them."""
    import torch

    before = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        if device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = device
        return torch.cuda.device_count()  # asked of the driver, as long as this process uses no GPU itself
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def report(study: Study, cells: list[Cell], arguments: argparse.Namespace) -> None:
    """Print the table of these cells, draw them, and leave the table of the whole study in its folder."""
    print(tabulate(study, cells))
    if not any(study.root.glob("*/results.json")):
        print(f"no finished run in {study.root}", file=sys.stderr)
    if arguments.figure:
        draw(study, cells, arguments.figure)
    if not arguments.table:
        study.root.mkdir(parents=True, exist_ok=True)
        (study.root / "table.md").write_text(tabulate(study, Choice.of(study).told(study.cells)) + "\n")


def planned(study: Study, chains: list[list[Run]]) -> list[str]:
    """A line a run, in the order in which they begin: its name, finished or not; then how many are left."""
    runs = {run.name: (study.root / run.name / "results.json").is_file() for chain in chains for run in chain}
    lines = [f"{'finished' if finished else 'to run'}  {name}" for name, finished in runs.items()]
    return [*lines, f"{len(runs) - sum(runs.values())} of {len(runs)} runs left"]


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; write a number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
