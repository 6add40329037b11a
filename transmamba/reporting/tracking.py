"""Console, metrics.jsonl and wandb behind one `log(row, step)`.

metrics.jsonl is the record that reports read: one JSON object a row, no row twice. A checkpoint saves
`offset()`; a resumed run calls `rewind(offset)`, and what was written after that checkpoint, a torn last line
too, is gone before its steps are logged again.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from ..core.task import Metric
from ..errors import UserError
from .progress import Bar, Display
from .status import stage, status

if TYPE_CHECKING:
    from accelerate import Accelerator

METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb_id"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases. Offline runs lie in RUN/wandb until `wandb sync` sends them.

    project, entity, group, tags: as wandb knows them
    name: of the run; left out: wandb makes one up
    mode: online or offline
    """

    project: str = "transmamba"
    name: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"
    tags: tuple[str, ...] = ()
    group: str | None = None


class Tracker:
    """Writes the rows of one run into `folder`; on other ranks than the main one it does nothing.

    accelerator: made with `log_with="wandb"` if `wandb` is given; None writes on every process
    total_steps: optimizer steps of the whole run, for the progress bar
    config: the resolved configuration, shown by wandb
    title: which run this is, as lines begin: `teacher`, `student`, `from scratch`
    stages: how many stages the run has
    metrics: of the task, by whose labels evaluations are said

    Raises UserError when wandb is wanted and cannot start.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator | None = None,
        wandb: WandbConfig | None = None,
        total_steps: int = 0,
        quiet: bool = False,
        config: Mapping[str, Any] | None = None,
        *,
        title: str = "",
        stages: int = 0,
        metrics: Sequence[Metric] = (),
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / METRICS_FILE
        self.main = accelerator is None or accelerator.is_main_process
        self.total_steps = total_steps
        self._accelerator = accelerator if wandb is not None else None
        self._file: BinaryIO | None = None
        self.title, self.stages, self.metrics = title, stages, tuple(metrics)
        self._display = Display(quiet=quiet or not self.main)
        self._bar: Bar | None = None
        self._stage = ""
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
        if wandb is not None:
            self._start_wandb(wandb, config or {})
        if self.main:
            self._file = self.path.open("ab")
            _end_last_line(self._file, self.path)

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Adds a row. Numbers that are not finite become null in metrics.jsonl, which JSON cannot hold."""
        if self._file is None:
            return
        values = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
        line = json.dumps({"step": step} | {key: _finite(value) for key, value in values.items()})
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        if self._accelerator is not None:
            self._accelerator.log(values, step=step)
        self._show(values, step)

    def say(self, text: str) -> None:
        """A line for the user, above the progress bar."""
        self._display.say(text)

    def watch(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """The same items, while a bar of its own shows how many have been taken."""
        return self._display.watch(items, f"{self.title}: {title}" if self.title else title, total)

    def offset(self) -> int:
        """Bytes of metrics.jsonl that are safely on disk, for a checkpoint; 0 on ranks that do not write."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def rewind(self, offset: int) -> None:
        """Forgets the rows after the first `offset` bytes: a checkpoint's `offset()`, 0 for a new start."""
        if self._file is None:
            return
        size = self._file.seek(0, os.SEEK_END)
        if size < offset:
            self.say(
                f"{self.path} holds {size} bytes, {offset} when the checkpoint was saved: rows are missing"
            )
        self._file.truncate(min(size, offset))
        _end_last_line(self._file, self.path)

    def close(self) -> None:
        """Ends the progress bar, the file and the wandb run. May be called twice."""
        self._display.close()
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._accelerator is not None:
            # Not `end_training()`: that would also take the process group away from whoever still needs it.
            # A tracker left in the list would be started once more by the next run of this Accelerator.
            for tracker in [kept for kept in self._accelerator.trackers if kept.name == "wandb"]:
                tracker.finish()
                self._accelerator.trackers.remove(tracker)
        self._accelerator = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_wandb(self, wandb: WandbConfig, config: Mapping[str, Any]) -> None:
        spec = importlib.util.find_spec("wandb")
        if (
            spec is None or spec.origin is None
        ):  # a folder of runs called wandb is found too, without an origin
            raise UserError("tracking with wandb needs wandb; write: pip install 'transmamba[wandb]'")
        if self._accelerator is None or "wandb" not in [str(kind) for kind in self._accelerator.log_with]:
            raise ValueError('the Accelerator must be made with log_with="wandb"')
        options = {key: value for key, value in dataclasses.asdict(wandb).items() if key != "project"}
        options |= {"tags": list(wandb.tags), "dir": str(self.folder)}
        options["mode"] = os.environ.get(
            "WANDB_MODE", wandb.mode
        )  # as everywhere with wandb, the machine decides
        if self.main:
            options["id"] = self._wandb_id()
        if options["mode"] == "online":
            options["resume"] = "allow"
        import wandb as package

        try:
            self._accelerator.init_trackers(
                wandb.project, config=dict(config), init_kwargs={"wandb": options}
            )
        except package.errors.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"wandb cannot start: {reason}; run `wandb login`, or write mode: offline"
            ) from error

    def _wandb_id(self) -> str:
        """The run's id, the same after a resume, so that wandb continues one run."""
        path = self.folder / WANDB_ID_FILE
        if not path.is_file():
            path.write_text(uuid.uuid4().hex[:12] + "\n")
        return path.read_text().strip()

    def _show(self, row: Mapping[str, Any], step: int) -> None:
        self._stage = stage(row, self.stages) or self._stage
        if self._bar is None:
            self._bar = self._display.bar("", self.total_steps or None, "step", prompt=True)
        seconds = row.get("seconds")
        self._bar.update(
            step,
            status(row, self.metrics),
            title=", ".join(filter(None, [self.title, self._stage])) or "run",
            line=any(key.startswith("eval/") for key in row),
            guess=seconds / step * (self.total_steps - step) if seconds and step else None,
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl without a torn last line. Raises UserError if it is missing or damaged."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; write the path of a run's {METRICS_FILE}") from None
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # a whole line ends with a newline
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is no JSON ({error})") from None
    return rows


def _end_last_line(file: BinaryIO, path: Path) -> None:
    """Cuts a line that a killed process left without its newline, so that the next row starts on its own."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        file.truncate(whole)
    file.seek(0, os.SEEK_END)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
