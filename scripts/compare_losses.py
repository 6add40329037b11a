"""Compare what two runs logged: a refactor must leave every loss identical.

    python scripts/compare_losses.py runs/before runs/after
    python scripts/compare_losses.py runs/one_gpu runs/two_gpus --tolerance 1e-3

Each argument is a run folder or a metrics.jsonl. Losses, similarities, gradient norms, learning rates and
evaluations are compared step by step, by the keys that both have (what one alone logs is said); times and
memory are not. Exits with 1 at a difference, 2 when a file cannot be read.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transmamba.errors import UserError
from transmamba.reporting.tracking import METRICS_FILE, read_metrics

MEASURED = {"seconds", "samples_per_second", "tokens_per_second", "data_wait", "peak_memory_mb"}

Rows = dict[tuple[int, bool], dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare what two runs logged.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="relative difference allowed; 0: bit for bit"
    )
    arguments = parser.parse_args()
    try:
        old, new = read_rows(arguments.old), read_rows(arguments.new)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, alone in (("OLD", keys(old) - keys(new)), ("NEW", keys(new) - keys(old))):
        if alone:
            print(f"in {name} alone: {', '.join(sorted(alone))}")
    found = list(differences(old, new, arguments.tolerance))
    if not found:
        last = max((step for step, _ in old), default=0)
        within = f" within {arguments.tolerance:g}" if arguments.tolerance else ""
        print(f"identical{within}: {len(old)} rows to step {last}")
        return 0
    step, lines = found[0]
    print(f"first differing step: {step} ({len(found)} of {len(old.keys() | new.keys())} rows differ)")
    print("\n".join(f"  {line}" for line in lines))
    return 1


def read_rows(path: Path) -> Rows:
    """Rows by (step, whether it is an evaluation). Raises UserError for a file that is missing or damaged."""
    rows = read_metrics(path / METRICS_FILE if path.is_dir() else path)
    return {(row["step"], any(key.startswith("eval/") for key in row)): row for row in rows}


def keys(rows: Rows) -> set[str]:
    """All that any row names, but for what is measured."""
    return {key for row in rows.values() for key in row} - MEASURED


def differences(old: Rows, new: Rows, tolerance: float) -> Iterator[tuple[int, list[str]]]:
    """(step, what differs) for every row that differs, in order."""
    for key in sorted(old.keys() | new.keys()):
        if key not in old or key not in new:
            yield key[0], [f"logged in {'NEW' if key in new else 'OLD'} alone"]
            continue
        a, b = old[key], new[key]
        lines = [
            f"{name}: {a.get(name)} in OLD, {b.get(name)} in NEW"
            for name in sorted((a.keys() & b.keys()) - MEASURED)
            if not same(a.get(name), b.get(name), tolerance)
        ]
        if lines:
            yield key[0], lines


def same(a: Any, b: Any, tolerance: float) -> bool:
    if tolerance and isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance * 1e-3)
    return a == b


if __name__ == "__main__":
    sys.exit(main())
