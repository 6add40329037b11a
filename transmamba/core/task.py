"""What a run asks of a task and of its evaluators, and what they answer with. A new modality brings its
own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .batch import Batch
from .output import Logits


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that an evaluator finds and tables show.

    key:      its name in results.json and, after `eval/`, in the log
    label:    what people call it, with its unit: `top-1 %`
    form:     how it is written: `{:.2f}`
    better:   whether more or less of it is
    headline: whether it is what a run is about: the first such is charted and tiled
    """

    key: str
    label: str
    form: str = "{:.2f}"
    better: Literal["up", "down"] = "up"
    headline: bool = False


@dataclass(frozen=True)
class Answer:
    """What one model said of a sample; `right` is None where nothing says so."""

    who: str
    text: str
    right: bool | None = None


@dataclass(frozen=True)
class Sample:
    """One item of a split, to look at.

    group:   the heading it stands under, such as `student and teacher differ`
    picture: (H, W, 3) uint8
    text:    what it says or asks
    label:   the right answer
    """

    group: str
    answers: tuple[Answer, ...]
    label: str = ""
    text: str = ""
    picture: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Matrix:
    """A table of numbers that is drawn: rows by columns, named where there is room; with `lines` each row as
    a line over the columns."""

    title: str
    values: npt.NDArray[np.float64]
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    row_label: str = ""
    column_label: str = ""
    lines: bool = False


@dataclass(frozen=True)
class Listing:
    """A table that is read: cells as text, under their columns' names."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Outcome:
    """What an evaluator found out about one model.

    metrics:  by `Metric.key`
    items:    by `Metric.key`, the score of each item, (N,): those metrics that are means over items, so that
        two models can be compared item by item
    index:    (N,) the items' numbers in their split
    exhibits: what else a report shows
    answers:  what the evaluator itself needs to compare models and to show samples
    cluster:  (N,) numbers that are the same of items which are no independent ones, such as twins; None where
        each stands for itself
    """

    metrics: Mapping[str, float]
    items: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    index: npt.NDArray[np.int64] | None = None
    exhibits: Sequence[Matrix | Listing] = ()
    answers: Any = None
    cluster: npt.NDArray[np.int64] | None = None


class Runner(Protocol):
    """A model as evaluators may use it: in evaluation mode, in the run's precision, on its device."""

    def logits(self, batch: Batch) -> Logits:
        """Of classes or of the vocabulary."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings (B, E) of the inputs that the batch has, by tower."""

    def generate(self, batch: Batch, limit: int) -> Tensor:
        """At most `limit` new tokens a row, (B, at most limit), by the model's own library."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """How an evaluator's split is gone through by one of `world` processes: equally often by each."""

    batch_size: int
    workers: int = 0
    rank: int = 0
    world: int = 1


@runtime_checkable
class Evaluator(Protocol):
    """One kind of measurement on one split. What a process gathers is a tally; tallies of all processes
    merge."""

    @property
    def split(self) -> str: ...

    @property
    def metrics(self) -> tuple[Metric, ...]: ...

    def batches(self, passing: Pass) -> Iterator[Batch]:
        """This process's batches."""

    def start(self) -> Any:
        """An empty tally."""

    def add(self, tally: Any, runners: Mapping[str, Runner], batch: Batch) -> None:
        """Run the models (`student`, `teacher` ...) on a batch and keep what `finish` needs."""

    def finish(self, tallies: Sequence[Any]) -> dict[str, Outcome]:
        """Of all processes' tallies, in the order of their ranks: what was found about each model."""

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """How far two models agree, by `Metric.key`."""

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """At most `count` items worth a look."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Which micro-batches of a stream one process takes: `num_steps * accumulation` from step `start_step`
    on."""

    micro_batch: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    seed: int = 0
    start_step: int = 0
    num_steps: int
    workers: int = 0
    pin_memory: bool = False


@runtime_checkable
class Task(Protocol):
    """Data and measurements of one kind of problem, as one model sees them.

    num_train:   how many items there are to train on
    watched:     the split that training is watched on; final: the one the results are of
    num_classes: classes to tell apart; None where there are none

    A task may also have `row_tokens` (int), the tokens of an item, for stages whose length is in tokens;
    `train_indices` ((num_train,) int64), the items trained on, which the run then keeps; `classes`, their
    names by number; `inputs`, what training batches have for towers to read (`image`, `text`); `targets`,
    those of `Batch.targets` that they have (`classes`, `tokens`);
    `train_source(seed)`, what makes a training batch of (epoch, position) pairs (`teachers.stored.Storable`),
    `position` below num_train, `seed` of what is drawn for each item: with it a teacher's outputs can be
    stored. `train_batches` then is its `data.stream.train_stream`.

    `recordable` (bool): whether `change` may be recorded with a step (`trainer.cuda_graphs`), to be replayed
    with other numbers. It then is a function of the batch's tensors alone, whatever `seed`, counts and
    generators are, and draws from none. It makes no tensor of the host's numbers or lists (`torch.tensor`, a
    list as an index), tells the host nothing (`item`, `nonzero`, a mask as an index), and its shapes follow
    from shapes. Where a task does not say so, `change` runs before each step, as it is.

    Its configuration makes it: `build(preprocessing)`; and it may have `build_training(preprocessing)`, which
    makes one that is trained on alone, for a stage with data of its own: without evaluation splits.
    """

    num_train: int
    watched: str
    final: str
    num_classes: int | None

    @property
    def preprocessing(self) -> Any: ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Of all evaluators, and of `compare`."""

    def check(self, model: Any, who: str) -> None:
        """Raises UserError where a teacher or a student does not fit the data."""

    def train_batches(self, steps: Steps) -> Iterator[Batch]:
        """They depend on nothing but the argument."""

    def calibration(self, samples: int, batch_size: int) -> Iterator[Batch]:
        """A fixed choice of training items, as evaluation sees them."""

    def change(self, batch: Batch, seed: int) -> Batch:
        """What is done to a batch on its device, drawn from `seed`: mixup; the same batch elsewhere."""

    def evaluators(self, split: str) -> tuple[Evaluator, ...]: ...

    def look_through(self) -> Iterator[str]:
        """Decode every item of the evaluation splits; a line for each that cannot be read."""
