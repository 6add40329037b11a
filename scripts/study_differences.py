"""The differences of a study that matter, with their intervals, and whether its bars are met.

`Study(header, bits)` holds what `scripts/study_report.py collect` wrote; `study.difference(place, a, b)`
compares two of its groups of runs, `differences(study, place)` and `bars(study, place)` all that the page
shows. A place is a (setting, student), a group an (arm, fraction): what is left in it are the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from study_file import name_of

from transmamba.errors import UserError

DRAWS, SEED = 10_000, 0
# Bar 1: the shares of the data, in percent, at which `full` is to reach from scratch with all of it.
REACHING = {"transfer": (50.0, 25.0), "compression": (25.0,)}
REPORTED = (50.0, 25.0, 10.0)
MOST = 50.0  # bar 2: up to here `full` is to be above the others

Place = tuple[str, str]
Group = tuple[str, str]
Floats = npt.NDArray[np.floating[Any]]


def share_of(fraction: str) -> float:
    """10.0 of '10%'. Raises UserError for another label."""
    try:
        return float(fraction.removesuffix("%"))
    except ValueError:
        raise UserError(f"fraction {fraction!r}: label it with its percentage, such as '10%'") from None


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

    @property
    def places(self) -> list[Place]:
        """Every (setting, student) of which there is a run, in the study's order."""
        found = {key[:2] for key in self._groups}
        every = [(a, b) for a in self.axes.get("setting", [""]) for b in self.axes.get("student", [""])]
        return [place for place in every if place in found]

    def group(self, place: Place, group: Group) -> list[int]:
        """Places in `cells` of its runs, one a seed, in the seeds' order."""
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

    def baseline(self, place: Place, fraction: str) -> Group | None:
        """The arm from scratch that is best on the validation split with this share of the data (on the test
        set where none was held out); None where there is none."""
        groups = [(arm, fraction) for arm in self.arms if arm.startswith("scratch")]
        groups = [group for group in groups if self.group(place, group)]

        def chosen_by(group: Group) -> float:
            runs = self.group(place, group)
            watched = [self.cells[i]["curve"][-1][1] for i in runs if self.cells[i].get("validation")]
            return float(np.mean(watched if len(watched) == len(runs) else self.top1[runs]))

        return max(groups, key=chosen_by, default=None)

    def best_scratch(self, place: Place) -> Group | None:
        """The baseline with all of the data."""
        (most,) = self.fractions[-1:]
        return self.baseline(place, most) if share_of(most) == 100 else None

    def labelled(self, share: float) -> str:
        """The fraction of so many percent, as the study labels it."""
        return next((label for label in self.fractions if share_of(label) == share), f"{share:g}%")


# --- what the page shows ---


def differences(study: Study, place: Place) -> Iterator[Difference]:
    """Every difference that matters of which both sides have run."""
    asked: list[tuple[Group, Group]] = list(beside_scratch(study, place, "full"))
    for arm in ("kl", "cab"):
        asked += [(("full", fraction), (arm, fraction)) for fraction in study.fractions]
    if best := study.best_scratch(place):
        asked += [(("full", study.labelled(share)), best) for share in REPORTED]
    asked += beside_scratch(study, place, "full_half")
    for a, b in study.compare:
        asked += [((a, fraction), (b, fraction)) for fraction in study.fractions]
    for a_group, b_group in dict.fromkeys(asked):
        if found := study.difference(place, a_group, b_group):
            yield found


def beside_scratch(study: Study, place: Place, arm: str) -> Iterator[tuple[Group, Group]]:
    """`arm` and the best from scratch with the same share of the data, whether they have run or not."""
    for fraction in study.fractions:
        yield (arm, fraction), study.baseline(place, fraction) or ("scratch", fraction)


def bars(study: Study, place: Place) -> Iterator[tuple[str, str]]:
    """(bar, `met`, `missed by` or `not run`) of a setting and student."""
    best = study.best_scratch(place)
    for share in REACHING.get(place[0], ()):
        fraction = study.labelled(share)
        against = "from scratch" if best is None else f"the best from scratch (`{best[0]}`)"
        asked = [] if best is None else [(("full", fraction), best)]
        yield (
            f"`full` at {fraction} at least as good as {against} at 100%",
            verdict(study, place, asked, strict=False),
        )
    low = [fraction for fraction in study.fractions if share_of(fraction) <= MOST]
    for arm in ("kl", "cab"):
        asked = [(("full", fraction), (arm, fraction)) for fraction in low]
        yield (
            f"`full` above `{arm}` at every fraction up to {MOST:g}%",
            verdict(study, place, asked, strict=True),
        )
    asked = list(beside_scratch(study, place, "full_half"))
    yield (
        "`full_half` reaches the best from scratch with its full schedule and the same share",
        verdict(study, place, asked, strict=False),
    )


def verdict(study: Study, place: Place, asked: list[tuple[Group, Group]], strict: bool) -> str:
    """Whether a is at least b (strict: above b) in every pair asked for; the interval where it is closest."""
    found = [study.difference(place, a, b) for a, b in asked]
    run = sorted((each for each in found if each), key=lambda each: each.mean)
    if not run:
        return "not run"
    absent = [a[1] for (a, _), each in zip(asked, found, strict=True) if each is None]
    missed = [each for each in run if each.mean < 0 or (strict and each.mean == 0)]
    first = run[0]
    between = f"(95 % interval {first.low:+.2f} to {first.high:+.2f}{', one seed' * (min(first.seeds) < 2)})"
    if missed:
        others = "".join(f", by {-each.mean:.2f} at {each.a[1]}" for each in missed[1:])
        text = f"missed by {-first.mean:.2f} at {first.a[1]} {between}{others}"
    elif absent:
        text = f"not run at {', '.join(absent)}; elsewhere ahead by {first.mean:.2f} or more {between}"
        return text
    else:
        text = f"met by {first.mean:.2f}{' or more' * (len(run) > 1)} {between}"
    return text + (f"; not run at {', '.join(absent)}" if absent else "")
