"""The collected runs of a study, and the differences between them with their intervals.

`Study(header, bits)` holds what `scripts/study_report.py collect` wrote; `study.difference(place, a, b)`
compares two of its groups of runs. A place is a (setting, student), a group an (arm, fraction): what is left
in it are the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from study_file import name_of

from transmamba.errors import UserError

DRAWS, SEED = 10_000, 0
Place = tuple[str, str]
Group = tuple[str, str]
Floats = npt.NDArray[np.floating[Any]]


def share_of(fraction: str) -> float:
    """10.0 of '10%'. Raises UserError for another label."""
    try:
        return float(fraction.removesuffix("%"))
    except ValueError:
        raise UserError(f"fraction {fraction!r}: label it with its percentage, such as '10%'") from None


def from_scratch(arm: str) -> bool:
    return arm.startswith("scratch")


# --- the bootstrap ---


def resampled_accuracies(
    correct: npt.NDArray[Any], draws: int = DRAWS, seed: int = SEED, chunk: int = 200
) -> Floats:
    """Top-1 in percent (draws, C) of C runs on images drawn with replacement.

    correct: (C, N), whether each run was right on each of the N images; all runs of a draw get the same ones
    """
    runs, images = correct.shape
    right = correct.astype(np.float32)
    generator = np.random.default_rng(seed)
    top1 = np.empty((draws, runs))
    for start in range(0, draws, chunk):
        rows = min(chunk, draws - start)
        drawn = generator.integers(0, images, (rows, images)) + images * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)
        top1[start : start + rows] = times.astype(np.float32) @ right.T  # whole numbers: exact in any order
    return 100 * top1 / images


def interval(a: Floats, b: Floats, paired: bool, seed: int = SEED) -> tuple[float, float]:
    """95 % interval of mean(a) - mean(b) over seeds and images, in points.

    a, b: (draws, seeds) of `resampled_accuracies`; their columns are drawn with replacement, the same ones
    for both where they are paired
    """
    generator = np.random.default_rng([seed, 1])  # not the images' own stream
    drawn_a = generator.integers(0, a.shape[1], a.shape)
    drawn_b = drawn_a if paired else generator.integers(0, b.shape[1], b.shape)
    gaps = np.take_along_axis(a, drawn_a, 1).mean(1) - np.take_along_axis(b, drawn_b, 1).mean(1)
    low, high = np.quantile(gaps, [0.025, 0.975])
    return float(low), float(high)


# --- the study ---


@dataclass(frozen=True)
class Difference:
    """a - b in points; `seeds` are how many runs each side has."""

    a: Group
    b: Group
    mean: float
    low: float
    high: float
    seeds: tuple[int, int]

    @property
    def verdict(self) -> str:
        """`counts` where the interval excludes zero; of one seed it cannot say how much seeds matter."""
        if min(self.seeds) < 2:
            return "one seed"
        return "counts" if self.low > 0 or self.high < 0 else ""


class Study:
    """The collected cells of a study, found by their labels."""

    def __init__(self, header: Mapping[str, Any], bits: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        self.axes: dict[str, list[str]] = header["axes"]
        self.cells: list[dict[str, Any]] = header["cells"]
        self.compare: list[list[str]] = header["compare"]
        self.scratch_of: dict[str, str] = header.get("scratch_of", {})
        self.first: dict[str, dict[str, Any]] = header.get("first", {})
        self.arms = self.axes["arm"]
        self.fractions = sorted(self.axes["fraction"], key=share_of)
        self._groups: dict[tuple[str, str, str, str], dict[str, int]] = {}
        tested: dict[tuple[str, int], list[int]] = {}
        for index, cell in enumerate(self.cells):
            labels = cell["labels"]
            key = labels.get("setting", ""), labels.get("student", ""), labels["arm"], labels["fraction"]
            self._groups.setdefault(key, {})[labels["seed"]] = index
            tested.setdefault((cell["test_labels"], cell["test_images"]), []).append(index)
        self.top1 = np.empty(len(self.cells))
        self._resampled = np.empty((DRAWS, len(self.cells)), dtype=np.float32)
        for (_, images), indices in tested.items():
            packed = np.stack([bits[name_of(self.cells[index]["labels"])] for index in indices])
            correct = np.unpackbits(packed, axis=1, count=images)
            self.top1[indices] = 100 * correct.mean(1)
            self._resampled[:, indices] = resampled_accuracies(correct)
        for setting, other in self.scratch_of.items():
            self._check_alike(setting, other)

    def _check_alike(self, setting: str, other: str) -> None:
        """Raises UserError if a share is not as many images in both, tested on the same ones."""
        found: dict[str, set[tuple[Any, Any]]] = {}
        for cell in self.cells:
            if cell["labels"].get("setting") in (setting, other):
                data = cell["train_images"], cell["test_labels"]
                found.setdefault(cell["labels"]["fraction"], set()).add(data)
        if apart := [fraction for fraction, data in found.items() if len(data) > 1]:
            raise UserError(
                f"report.scratch_of: {setting} and {other} differ in their images at {apart[0]}; leave it out"
            )

    @property
    def places(self) -> list[Place]:
        """Every (setting, student) of which there is a run, in the study's order."""
        found = {key[:2] for key in self._groups}
        every = [(a, b) for a in self.axes.get("setting", [""]) for b in self.axes.get("student", [""])]
        return [place for place in every if place in found]

    def group(self, place: Place, group: Group) -> list[int]:
        """Places in `cells` of its runs, one a seed, in the seeds' order.

        From scratch knows no teacher: settings that differ in the teacher alone share those runs.
        """
        if from_scratch(group[0]):
            place = self.scratch_of.get(place[0], place[0]), place[1]
        found = self._groups.get((*place, *group), {})
        return [found[seed] for seed in self.axes["seed"] if seed in found]

    def difference(self, place: Place, a: Group, b: Group) -> Difference | None:
        """Top-1 of `a` less that of `b`; None if either has no run.

        Raises UserError if they were tested on different images.
        """
        left, right = self.group(place, a), self.group(place, b)
        if not left or not right:
            return None
        if len({self.cells[index]["test_labels"] for index in (*left, *right)}) > 1:
            raise UserError(f"{' '.join(place)}: {' '.join(a)} and {' '.join(b)} were tested on other images")
        seeds = [[self.cells[index]["labels"]["seed"] for index in side] for side in (left, right)]
        low, high = interval(
            self._resampled[:, left].astype(np.float64),
            self._resampled[:, right].astype(np.float64),
            paired=seeds[0] == seeds[1],
        )
        mean = float(self.top1[left].mean() - self.top1[right].mean())
        return Difference(a, b, mean, low, high, (len(left), len(right)))

    def steps(self, place: Place, group: Group) -> int | None:
        """Optimizer steps of its runs; None where there is none, or they differ."""
        found = {self.cells[index]["steps"] for index in self.group(place, group)}
        return found.pop() if len(found) == 1 else None

    def teacher(self, place: Place, fraction: str) -> float | None:
        """Mean top-1 of this setting's teacher, its head fitted on this share of the data.

        Where that did not run, on whatever shares did; None if unknown.
        """
        found = [
            (cell["labels"]["fraction"], cell["teacher_top1"])
            for cell in self.cells
            if cell["labels"].get("setting", "") == place[0] and cell["teacher_top1"] is not None
        ]
        same = [top1 for label, top1 in found if label == fraction] or [top1 for _, top1 in found]
        return float(np.mean(same)) if same else None

    def baseline(self, place: Place, fraction: str, steps: int | None = None) -> Group | None:
        """The arm from scratch that is best on the validation split with this share of the data, of so many
        `steps` or of any number; None where there is none.

        On the test set where one of them held no images out.
        """
        groups = [(arm, fraction) for arm in self.arms if from_scratch(arm)]
        groups = [group for group in groups if self.group(place, group)]
        if steps is not None:
            groups = [group for group in groups if self.steps(place, group) == steps]

        runs = [index for group in groups for index in self.group(place, group)]
        watched = all(self.cells[index].get("validation") for index in runs)

        def chosen_by(group: Group) -> float:
            same = self.group(place, group)
            last = [self.cells[index]["curve"][-1][1] for index in same] if watched else self.top1[same]
            return float(np.mean(last))

        return max(groups, key=chosen_by, default=None)

    def best_scratch(self, place: Place) -> Group | None:
        """The baseline with all of the data."""
        (most,) = self.fractions[-1:]
        return self.baseline(place, most) if share_of(most) == 100 else None

    def labelled(self, share: float) -> str:
        """The fraction of so many percent, as the study labels it."""
        return next((label for label in self.fractions if share_of(label) == share), f"{share:g}%")
