"""How scripts/study.py runs its recipes: in processes of their own, or in some that go on from run to run.

A process costs seconds before its first step: imports, a GPU's context, kernels that are loaded. Of a run of
seconds that is most of it, hence `--keep-process`: each job is one process, which runs recipe after recipe by
the same code. What a run leaves is the same; a run that fails takes its process with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from study_file import Run

SCRIPTS = Path(__file__).resolve().parent
RECIPE_SCRIPT = SCRIPTS.parent / "recipes" / "distill.py"
MOST_RUNS = 100  # of one process, whatever it may gather
# what a finished run's table does not read
LARGE = ("checkpoints", "student", "adapter", "report.html", "samples.npz")


@dataclass
class Slot:
    """One of the jobs: its GPU's number, if it has one, and the process that it keeps, with its runs."""

    device: str
    process: subprocess.Popen[str] | None = None
    runs: int = 0


class Runner:
    """Runs recipes, `jobs` at a time, spread over `devices` (GPU numbers, or none).

    keep: processes go on from run to run
    lean: of a finished cell only what tables read is kept

    SIGTERM is passed on: each run saves what it has, and nothing new is begun.
    """

    def __init__(
        self,
        root: Path,
        jobs: int,
        threads: int,
        devices: list[str],
        *,
        keep: bool = False,
        lean: bool = False,
    ) -> None:
        self.root, self.jobs, self.threads, self.keep, self.lean = root, jobs, threads, keep, lean
        self.slots: SimpleQueue[Slot] = SimpleQueue()
        for slot in range(jobs):
            self.slots.put(Slot(devices[slot % len(devices)] if devices else ""))
        self.stopping = False
        self._cells: set[str] = set()
        self._running: set[subprocess.Popen[Any]] = set()
        self._lock = threading.Lock()

    def run_all(self, chains: list[list[Run]]) -> list[Run]:
        """Runs what is not finished yet: each chain one after the other, chains beside each other, earlier
        ones first; what several share is run once. Returns the runs that did not finish."""
        self._cells = {chain[-1].name for chain in chains if chain}
        begun: dict[str, Future[bool]] = {}
        runs: dict[str, Run] = {}
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                for chain in chains:
                    before: list[Future[bool]] = []
                    for run in chain:
                        if run.name not in begun:
                            # whoever waits was submitted after what it waits for, so somebody always works
                            begun[run.name] = pool.submit(self._after, tuple(before), run)
                            runs[run.name] = run
                        before.append(begun[run.name])
        except BaseException:  # Ctrl-C, say: the pool would go on
            self.stop()
            raise
        finally:
            self._end_kept()
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
            self._shed(run)
            return results.is_file()
        rest = [item for item in run.overrides if not item.startswith("config=")]
        arguments = ["--config", run.config, f"output_dir={folder}", *rest]
        self.root.mkdir(parents=True, exist_ok=True)
        log, slot = self.root / f"{run.name}.log", self.slots.get()
        try:
            (self._go_on if self.keep else self._wait)(arguments, log, slot)
        finally:
            self.slots.put(slot)
        self._shed(run)
        if not self.stopping:
            print(f"{'done' if results.is_file() else 'failed'}  {run.name}", file=sys.stderr, flush=True)
        return results.is_file()

    def _wait(self, arguments: list[str], log: Path, slot: Slot) -> None:
        """In a process of its own."""
        command = [sys.executable, str(RECIPE_SCRIPT), *arguments]
        with log.open("w") as file, self._started(command, slot, stdout=file) as process:
            if process is not None:
                process.wait()

    def _go_on(self, arguments: list[str], log: Path, slot: Slot) -> None:
        """In the slot's process, begun where there is none."""
        if slot.process is None or slot.process.poll() is not None or slot.runs >= MOST_RUNS:
            self._end(slot)
            command, pipe = [sys.executable, str(SCRIPTS / "study_worker.py")], subprocess.PIPE
            slot.process = self._begin(command, slot, stdin=pipe, stdout=pipe)
            slot.runs = 0
        if slot.process is None:  # stopped before it began
            return
        assert slot.process.stdin is not None and slot.process.stdout is not None
        slot.runs += 1
        try:
            slot.process.stdin.write(json.dumps({"arguments": arguments, "log": str(log)}) + "\n")
            slot.process.stdin.flush()
            status = slot.process.stdout.readline().strip()
        except OSError:  # it was killed
            status = ""
        if status != "0":
            self._end(slot)

    def _end_kept(self) -> None:
        """The kept processes end with their input."""
        waiting = [self.slots.get() for _ in range(self.jobs)]
        for slot in waiting:
            self._end(slot)
            self.slots.put(slot)

    def _end(self, slot: Slot) -> None:
        process, slot.process = slot.process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()
        with self._lock:
            self._running.discard(process)

    @contextmanager
    def _started(
        self, command: list[str], slot: Slot, **pipes: Any
    ) -> Iterator[subprocess.Popen[str] | None]:
        process = self._begin(command, slot, **pipes, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            with self._lock:
                self._running.discard(process)  # type: ignore[arg-type]

    def _begin(self, command: list[str], slot: Slot, **pipes: Any) -> subprocess.Popen[str] | None:
        """A process with its threads and its GPU; none where all is to stop."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        if slot.device:
            environment["CUDA_VISIBLE_DEVICES"] = slot.device
        with self._lock:
            if self.stopping:
                return None
            process = subprocess.Popen(command, env=environment, text=True, **pipes)
            self._running.add(process)
        return process

    def _shed(self, run: Run) -> None:
        """Of a finished cell, where that is asked for, leave what tables and a new run of it need."""
        folder = self.root / run.name
        if not self.lean or run.name not in self._cells or not (folder / "results.json").is_file():
            return
        for name in LARGE:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
