"""Run a grid of recipes and tabulate it; a killed study goes on where it was.

    python scripts/study.py recipes/studies/mnist.yaml --jobs 6 task.data.path=mnist.npz

A study file names `output_dir`, `axes` (axis -> label -> list of overrides, `config=RECIPE` among them) and
`report` (metric of results.json, rows, columns). Every cell is an ordinary run of `recipes/distill.py` in
output_dir/LABEL.LABEL..., so a finished cell is not repeated; each can be rebuilt from its own config.yaml.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

RECIPE_SCRIPT = Path(__file__).resolve().parent.parent / "recipes" / "distill.py"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("study", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a cell")
    parser.add_argument("--only", action="append", default=[], metavar="LABEL", help="cells with this label")
    parser.add_argument("--table", action="store_true", help="tabulate what is there, run nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every cell")
    arguments = parser.parse_intermixed_args(argv)
    study = yaml.safe_load(arguments.study.read_text())
    root = Path(study["output_dir"])
    cells = [cell for cell in grid(study["axes"]) if set(arguments.only) <= set(cell)]
    if not arguments.table:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            codes = list(
                pool.map(
                    lambda cell: run_cell(study, cell, root, arguments.overrides, arguments.threads), cells
                )
            )
        if failed := [cell for cell, code in zip(cells, codes, strict=True) if code]:
            print(
                f"{len(failed)} of {len(cells)} cells failed, such as {'.'.join(failed[0])}", file=sys.stderr
            )
    table = tabulate(study, root)
    print(table)
    root.mkdir(parents=True, exist_ok=True)
    (root / "table.md").write_text(table + "\n")
    return 0


def grid(axes: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Every combination of one label an axis, the first axis outermost."""
    return itertools.product(*(map(str, labels) for labels in axes.values()))


def overrides_of(study: dict[str, Any], cell: tuple[str, ...]) -> list[str]:
    chosen: list[str] = []
    for labels, label in zip(study["axes"].values(), cell, strict=True):
        by_name = {str(key): value for key, value in labels.items()}
        chosen += by_name[label] or []
    return chosen


def run_cell(
    study: dict[str, Any], cell: tuple[str, ...], root: Path, overrides: list[str], threads: int
) -> int:
    folder = root / ".".join(cell)
    if (folder / "results.json").is_file():
        return 0
    chosen = overrides_of(study, cell) + overrides
    configs = [item.removeprefix("config=") for item in chosen if item.startswith("config=")]
    rest = [item for item in chosen if not item.startswith("config=")]
    command = [sys.executable, str(RECIPE_SCRIPT), "--config", configs[-1], f"output_dir={folder}", *rest]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (root / f"{folder.name}.log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    print(f"{'failed' if code else 'done'}  {folder.name}", file=sys.stderr, flush=True)
    return code


def tabulate(study: dict[str, Any], root: Path) -> str:
    """A Markdown table: mean ± standard deviation over the remaining axes, and their number."""
    report = study["report"]
    names = list(study["axes"])
    found: dict[tuple[str, str], list[float]] = {}
    for cell in grid(study["axes"]):
        path = root / ".".join(cell) / "results.json"
        if path.is_file():
            labels = dict(zip(names, cell, strict=True))
            row = " ".join(labels[axis] for axis in report["rows"])
            value = json.loads(path.read_text())["student"][report["metric"]]
            found.setdefault((row, labels[report["columns"]]), []).append(value)
    columns = [str(label) for label in study["axes"][report["columns"]]]
    rows = list(dict.fromkeys(row for row, _ in found))
    lines = ["| " + " | ".join([report["metric"], *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        lines.append(
            "| " + " | ".join([row, *(_shown(found.get((row, column), [])) for column in columns)]) + " |"
        )
    return "\n".join(lines)


def _shown(values: list[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)})"


if __name__ == "__main__":
    sys.exit(main())
