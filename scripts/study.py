"""Run a grid of recipes and tabulate it; a killed study goes on where it was.

    python scripts/study.py recipes/studies/mnist.yaml --jobs 6 task.data.path=mnist.npz

Every cell is an ordinary run of `recipes/distill.py` in output_dir/LABEL.LABEL..., so a finished cell is not
repeated, and each can be rebuilt from its own config.yaml. A study file names:

output_dir: where the cells go
common:     overrides of every cell
axes:       axis -> label -> overrides (`config=RECIPE` among them), or a mapping of set (overrides), needs
            (names of runs) and let (values for templates)
first:      runs that cells need, name -> overrides; made once, before the first cell that needs them, in this
            order
cells:      which cells, in this order: a list of axis -> label or labels (an axis left out: all of it); by
            default the whole grid
report:     metric of results.json, rows and columns of the table that is printed

An override is text, `key=value`, or a mapping of keys and values. In names and overrides `${axis}` stands for
the cell's label, `${name}` for what a label lets it be, `${output_dir}` for the study's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml
from study_file import Run, Study, name_of
from study_tables import mean_and_deviation, table

RECIPE_SCRIPT = Path(__file__).resolve().parent.parent / "recipes" / "distill.py"


class Runner:
    """Runs recipes as processes of their own, `jobs` at a time, spread over `devices` (GPU numbers, or none).

    SIGTERM is passed on: each run saves what it has, and nothing new is begun.
    """

    def __init__(self, root: Path, jobs: int, threads: int, devices: list[str]) -> None:
        self.root, self.jobs, self.threads = root, jobs, threads
        self.slots: SimpleQueue[str] = SimpleQueue()
        for slot in range(jobs):
            self.slots.put(devices[slot % len(devices)] if devices else "")
        self.stopping = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run_all(self, chains: list[list[Run]]) -> list[Run]:
        """Runs what is not finished yet: each chain one after the other, chains beside each other, earlier
        ones first; what several share is run once. Returns the runs that did not finish."""
        begun: dict[str, Future[bool]] = {}
        runs: dict[str, Run] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            for chain in chains:
                before: list[Future[bool]] = []
                for run in chain:
                    if run.name not in begun:
                        # whoever waits was submitted after what it waits for, so somebody always works
                        begun[run.name] = pool.submit(self._after, tuple(before), run)
                        runs[run.name] = run
                    before.append(begun[run.name])
        return [runs[name] for name, future in begun.items() if not future.result()]

    def _after(self, before: tuple[Future[bool], ...], run: Run) -> bool:
        return all(future.result() for future in before) and self._run(run)

    def stop(self, *_: Any) -> None:
        with self._lock:
            self.stopping = True
            for process in self._running:
                process.terminate()

    def _run(self, run: Run) -> bool:
        folder = self.root / run.name
        results = folder / "results.json"
        if results.is_file() or self.stopping:
            return results.is_file()
        rest = [item for item in run.overrides if not item.startswith("config=")]
        command = [sys.executable, str(RECIPE_SCRIPT), "--config", run.config, f"output_dir={folder}", *rest]
        self.root.mkdir(parents=True, exist_ok=True)
        device = self.slots.get()
        try:
            with (self.root / f"{run.name}.log").open("w") as log:
                self._wait(command, log, device)
        finally:
            self.slots.put(device)
        if not self.stopping:
            print(f"{'done' if results.is_file() else 'failed'}  {run.name}", file=sys.stderr, flush=True)
        return results.is_file()

    def _wait(self, command: list[str], log: Any, device: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        with self._lock:
            if self.stopping:
                return
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            self._running.add(process)
        process.wait()
        with self._lock:
            self._running.discard(process)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("study", type=Path)
    parser.add_argument("--jobs", type=_positive, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a cell")
    parser.add_argument("--devices", default="", help="GPUs that the cells share, such as 0,1")
    parser.add_argument("--only", action="append", default=[], metavar="LABEL", help="cells with this label")
    parser.add_argument("--table", action="store_true", help="tabulate what is there, run nothing")
    parser.add_argument("--dry-run", action="store_true", help="list what would run, in its order")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    arguments = parser.parse_intermixed_args(argv)
    try:
        study = Study(yaml.safe_load(arguments.study.read_text()), arguments.overrides)
        cells = [cell for cell in study.cells if set(arguments.only) <= set(cell.values())]
        if not cells:
            raise ValueError(f"no cell has all of the labels {', '.join(arguments.only)}")
        chains = [[*study.needs(cell), study.run_of(cell)] for cell in cells]
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        print(f"{arguments.study}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if arguments.dry_run:
        print("\n".join(planned(study, chains)))
        return 0
    devices = [device for device in arguments.devices.split(",") if device]
    failed: list[Run] = []
    if not arguments.table:
        runner = Runner(study.root, arguments.jobs, arguments.threads, devices)
        signal.signal(signal.SIGTERM, runner.stop)
        failed = runner.run_all(chains)
        if runner.stopping:
            print("stopped; the same command goes on", file=sys.stderr)
        elif failed:
            print(f"{len(failed)} runs failed; see {study.root / failed[0].name}.log", file=sys.stderr)
    table = tabulate(study)
    print(table)
    if arguments.table and not any(study.root.glob("*/results.json")):
        print(f"no finished run in {study.root}", file=sys.stderr)
    if not arguments.table:
        study.root.mkdir(parents=True, exist_ok=True)
        (study.root / "table.md").write_text(table + "\n")
    return 1 if failed else 0


def planned(study: Study, chains: list[list[Run]]) -> list[str]:
    """A line a run, in the order in which they begin: its name, finished or not; then how many are left."""
    runs = {run.name: (study.root / run.name / "results.json").is_file() for chain in chains for run in chain}
    lines = [f"{'finished' if finished else 'to run'}  {name}" for name, finished in runs.items()]
    return [*lines, f"{len(runs) - sum(runs.values())} of {len(runs)} runs left"]


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; write a number of at least 1")
    return int(text)


def tabulate(study: Study) -> str:
    """A Markdown table: mean ± standard deviation over the remaining axes, and their number."""
    report = study.report
    found: dict[tuple[str, str], list[float]] = {}
    for cell in study.cells:
        path = study.root / name_of(cell) / "results.json"
        if path.is_file():
            row = " ".join(cell[axis] for axis in report["rows"])
            value = json.loads(path.read_text())["student"][report["metric"]]
            found.setdefault((row, cell[report["columns"]]), []).append(value)
    columns = list(study.axes[report["columns"]])
    rows = [[report["metric"], *columns]]
    for row in dict.fromkeys(row for row, _ in found):
        rows.append([row, *(_shown(found.get((row, column), [])) for column in columns)])
    return table(rows)


def _shown(values: list[float]) -> str:
    return f"{values[0]:.2f}" if len(values) == 1 else mean_and_deviation(values)


if __name__ == "__main__":
    sys.exit(main())
