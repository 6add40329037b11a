"""A study of several tasks as a page: mean ranks with intervals, what rows cost, and which claims hold.

    python scripts/study_ranks.py recipes/studies/peft_images.yaml > page.md

`report` of the study file: rows, columns (tasks), metric and better as of scripts/study_tables.py, and

ranks: groups: name -> columns, of which the page shows means; these columns have the ranks, by default all
       claims: a list of claim (in words), better (a row), than (rows); `equal: true` where it is to be no
           worse; with over and than_over (rows) it is about gains: better - over against than - than_over;
           with tasks of these columns, by default those of the groups
       margin: by how much less is no worse, in the metric's unit, 1 by default

A row's mean rank is its place among all rows, 1 the best, equal ones sharing theirs, averaged over columns.
Only rows with a run in every column have one. Intervals are of 95 %, by a paired bootstrap: each draw takes
runs (seeds) and items of every column's test split with replacement, the same ones for all rows. Tasks are
not drawn: what is said is of these.

A claim holds where the whole interval of every difference is above 0 (above -margin for `equal`), fails where
that of one is below 0, and is undecided otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from study_choice import Choice
from study_file import Study, name_of
from study_tables import read_score

DRAWS, SEED = 2_000, 0
Floats = npt.NDArray[np.floating[Any]]
RANK_KEYS = {"groups", "claims", "margin"}
CLAIM_KEYS = {"claim", "better", "than", "equal", "over", "than_over", "tasks"}


@dataclass(frozen=True)
class Scores:
    """rows, columns: names
    runs:   (row, column) -> the folders of its finished runs, in the order of the study
    values: (rows, columns) means, nan where there is none; draws: (DRAWS, rows, columns)
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    runs: Mapping[tuple[str, str], list[Path]]
    values: Floats
    draws: Floats

    def row(self, name: str) -> int | None:
        return self.rows.index(name) if name in self.rows else None

    def of(self, columns: Sequence[str]) -> Scores:
        """Of these columns, and the rows that have any."""
        kept = [self.columns.index(column) for column in columns if column in self.columns]
        rows = [k for k in range(len(self.rows)) if not np.isnan(self.values[k, kept]).all()]
        values, draws = self.values[np.ix_(rows, kept)], self.draws[:, rows][:, :, kept]
        names = tuple(self.rows[k] for k in rows), tuple(self.columns[k] for k in kept)
        return Scores(*names, self.runs, values, draws)


# --- what runs left ---


def scores_of(study: Study) -> Scores:
    """Of the finished runs of a study. Raises ValueError for damaged ones, and where items differ by row."""
    report = study.report
    found: dict[tuple[str, str], list[tuple[str, Path]]] = {}
    hidden = [axis for axis in study.axes if axis not in (*report["rows"], report["columns"])]
    for cell in Choice.of(study).told(study.cells):
        folder = study.root / name_of(cell)
        if (folder / "results.json").is_file():
            row = " ".join(cell[axis] for axis in report["rows"])
            rate = study.choose["axis"] if study.choose else None
            which = ".".join(cell[axis] for axis in hidden if axis != rate)
            found.setdefault((row, cell[report["columns"]]), []).append((which, folder))
    rows = tuple(dict.fromkeys(row for row, _ in found))
    columns = tuple(name for name in study.axes[report["columns"]] if any(name == c for _, c in found))
    values = np.full((len(rows), len(columns)), np.nan)
    draws = np.full((DRAWS, len(rows), len(columns)), np.nan)
    for at, column in enumerate(columns):
        mine = {row: found[row, column] for row in rows if (row, column) in found}
        values[[rows.index(row) for row in mine], at], drawn = _drawn(study, column, mine)
        draws[:, [rows.index(row) for row in mine], at] = drawn
    folders = {key: [folder for _, folder in each] for key, each in found.items()}
    return Scores(rows, columns, folders, values, draws)


def _drawn(study: Study, column: str, mine: Mapping[str, list[tuple[str, Path]]]) -> tuple[Floats, Floats]:
    """(rows,) means and (DRAWS, rows) of draws of one column: which runs and items, the same for all rows."""
    metric = study.report["metric"]
    read = {folder: read_score(folder, metric) for each in mine.values() for _, folder in each}
    scores = {folder: score for folder, score in read.items() if score is not None}
    means = np.array([statistics.fmean(scores[f].value for _, f in each) for each in mine.values()])
    generator = np.random.default_rng([SEED, *column.encode()])
    indexes = [score.index for score in scores.values()]
    if not all(index.size and np.array_equal(index, indexes[0]) for index in indexes):
        raise ValueError(f"{column}: runs have not kept scores of the same items; run them again")
    size = len(indexes[0])
    times = generator.multinomial(size, np.full(size, 1 / size), DRAWS).astype(np.float64) / size
    seeds = sorted({which for each in mine.values() for which, _ in each})
    weights = generator.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), DRAWS)
    result = np.empty((DRAWS, len(mine)))
    for place, each in enumerate(mine.values()):
        own = weights[:, [seeds.index(which) for which, _ in each]].astype(np.float64)
        own[own.sum(1) == 0] = 1  # of a row with few runs none was drawn
        drawn = times @ np.stack([scores[folder].items for _, folder in each], 1)  # (DRAWS, runs)
        result[:, place] = (drawn * own).sum(1) / own.sum(1)
    return means, result


def mean_ranks(values: Floats, better: str) -> Floats:
    """(..., rows) of (..., rows, columns): the mean place over columns, 1 the best; equal ones share."""
    signed = -values if better == "up" else values
    ahead = (signed[..., None, :, :] < signed[..., :, None, :]).sum(-2)
    same = (signed[..., None, :, :] == signed[..., :, None, :]).sum(-2)
    places: Floats = (ahead + (same + 1) / 2).mean(-1)
    return places


# --- the page ---


def page(study: Study, scores: Scores) -> str:
    """Markdown."""
    ranks = study.report["ranks"]
    groups = ranks.get("groups") or {}
    chosen = [column for group in groups.values() for column in group] or list(
        study.axes[study.report["columns"]]
    )
    told = scores.of(chosen)
    whole = [k for k in range(len(told.rows)) if not np.isnan(told.values[k]).any()]
    if len(told.columns) < len(chosen):
        whole = []
    lines = _table(study.report, told, whole, groups) if whole else ["No row has a run in every column yet."]
    left = [name for k, name in enumerate(told.rows) if k not in whole]
    if left:
        lines += ["", f"Not in every column yet, and without a rank: {', '.join(left)}."]
    margin = float(ranks.get("margin", 1.0))
    claims = [
        _claim(claim, scores.of(claim.get("tasks") or chosen), study.report, margin)
        for claim in ranks.get("claims") or []
    ]
    return "\n".join([*lines, "", *claims])


def _table(
    report: Mapping[str, Any], scores: Scores, whole: Sequence[int], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    point = mean_ranks(scores.values[whole], report["better"])
    parts = np.array_split(scores.draws[:, whole], 100)
    drawn = np.concatenate([mean_ranks(part, report["better"]) for part in parts])
    heads = [
        " ".join(report["rows"]),
        "mean rank [95 %]",
        f"mean {report['metric']}",
        *groups,
        *scores.columns,
    ]
    heads += ["trained", "ms a step", "peak MiB", "merge ms"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for place in np.argsort(point, kind="stable"):
        name, own = scores.rows[whole[place]], scores.values[whole[place]]
        low, high = np.quantile(drawn[:, place], [0.025, 0.975])
        cells = [name, f"{point[place]:.1f} [{low:.1f} to {high:.1f}]", f"{own.mean():.2f}"]
        cells += [f"{own[[scores.columns.index(c) for c in group]].mean():.2f}" for group in groups.values()]
        cells += [f"{value:.2f}" for value in own]
        folders = [folder for column in scores.columns for folder in scores.runs[name, column]]
        lines.append("| " + " | ".join([*cells, *_costs(folders)]) + " |")
    return lines


def _costs(folders: Sequence[Path]) -> list[str]:
    """Trained parameters, milliseconds a step, MiB at most in training, milliseconds of a merge: medians of a
    row's runs; `-` where runs do not say."""
    found: dict[str, list[float]] = {"trained": [], "step": [], "memory": [], "merge": []}
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        adapter = results.get("adapter") or {}
        if "trained" in adapter:
            found["trained"].append(adapter["trained"])
        if "merge_seconds" in adapter:
            found["merge"].append(1e3 * adapter["merge_seconds"])
        last = _last_window(folder)
        if last:
            batch = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["global_batch"]
            found["step"].append(1e3 * batch / last["samples_per_second"])
            found["memory"].append(last["peak_memory_mb"])
    form = {"trained": "{:,.0f}", "step": "{:.1f}", "memory": "{:,.0f}", "merge": "{:.0f}"}
    return [form[key].format(statistics.median(each)) if each else "-" for key, each in found.items()]


def _last_window(folder: Path) -> dict[str, float] | None:
    """What metrics.jsonl says last of training."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    timed = [row for row in rows if row.get("samples_per_second") and "peak_memory_mb" in row]
    return timed[-1] if timed else None


# --- claims ---


def _claim(claim: Mapping[str, Any], scores: Scores, report: Mapping[str, Any], margin: float) -> str:
    """A line: what is claimed, whether it holds, and the differences that decide it."""
    sign = 1 if report["better"] == "up" else -1
    least = -margin if claim.get("equal") else 0.0
    told, found = [], []
    for other in claim["than"]:
        names = [claim["better"], other, *(claim[key] for key in ("over", "than_over") if key in claim)]
        rows = [scores.row(name) for name in names]
        if any(row is None for row in rows):
            told.append(f"{other}: not run yet")
            continue
        gap, drawn = _gap(scores.values, rows), _gap(scores.draws, rows)
        columns = ~np.isnan(gap)
        if not columns.any():
            told.append(f"{other}: not run yet")
            continue
        low, high = np.quantile(sign * drawn[:, columns].mean(1), [0.025, 0.975])
        found.append((low, high))
        seen = f"{columns.sum()} of {len(columns)} tasks, " * (not columns.all())
        told.append(f"{other}: {seen}{sign * gap[columns].mean():+.2f} [{low:+.2f} to {high:+.2f}]")
    if any(high < 0 for _, high in found):
        verdict = "fails"
    elif len(found) < len(claim["than"]):
        verdict = "not run yet" if not found else "undecided, not all run"
    else:
        verdict = "holds" if all(low > least for low, _ in found) else "undecided"
    return f"- **{verdict}**: {claim['claim']}. {claim['better']} against {'; '.join(told)}."


def _gap(values: Floats, rows: Sequence[Any]) -> Floats:
    """better - than, or (better - over) - (than - than_over), of (..., rows, columns): (..., columns)."""
    gap: Floats = values[..., rows[0], :] - values[..., rows[1], :]
    if len(rows) == 4:
        gap = gap - values[..., rows[2], :] + values[..., rows[3], :]
    return gap


def check(study: Study) -> None:
    """Raises ValueError for what the page cannot be made of."""
    report = study.report
    ranks = report.get("ranks")
    if not isinstance(ranks, dict) or set(ranks) - RANK_KEYS:
        raise ValueError(f"report: ranks is {ranks!r}; write groups, claims, margin")
    if report.get("better") not in ("up", "down"):
        raise ValueError("report: ranks need better: up or down")
    tasks, columns = report["columns"], study.axes[report["columns"]]
    known = {" ".join(cell[axis] for axis in report["rows"]) for cell in Choice.of(study).asked(study.cells)}
    for name, group in (ranks.get("groups") or {}).items():
        _known(f"ranks: groups: {name}", group, columns, f"label of {tasks}")
    for claim in ranks.get("claims") or []:
        if set(claim) - CLAIM_KEYS or not {"claim", "better", "than"} <= set(claim):
            raise ValueError(f"report: ranks: claims: {claim!r} has unknown keys, or no claim, better, than")
        if ("over" in claim) != ("than_over" in claim):
            raise ValueError(f"report: ranks: {claim['claim']!r}: write over and than_over, or neither")
        further = [claim[key] for key in ("over", "than_over") if key in claim]
        _known(f"ranks: {claim['claim']!r}", [claim["better"], *claim["than"], *further], known, "row")
        _known(f"ranks: {claim['claim']!r}", claim.get("tasks") or (), columns, f"label of {tasks}")


def _known(where: str, names: Iterable[str], known: Collection[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"report: {where}: {name!r} is no {what} of the study")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    arguments = parser.parse_args(argv)
    try:
        study = Study(yaml.safe_load(arguments.study.read_text()))
        check(study)
        print(page(study, scores_of(study)))
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"{arguments.study}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
