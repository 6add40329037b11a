"""The demo's honest figure: 5-fold on the handwritten digits, predictions pooled over all 1,797 images.

    python scripts/digits_crossval.py --output runs/digits_crossval
    python scripts/digits_crossval.py --output runs/tiny --teacher stages.0.epochs=1 \
        --student stages.1.steps=2 --scratch stages.0.steps=2 --kl stages.0.steps=2

For every fold the demo's four recipes, with only the fold changed. Prints the pooled top-1 of each model and
the paired bootstrap intervals, and writes OUTPUT/crossval.json. Started again, it continues where it stopped.
`--only 3` runs fold 3 and pools nothing, so that folds can be run side by side before.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from demo import PARTS, TOP1, items_of

from transmamba.cli.mistakes import guarded
from transmamba.evaluation.compare import paired_bootstrap
from transmamba.runs.run import load_recipe, run

RIVALS = ("scratch", "kl", "teacher")

Correct = dict[str, npt.NDArray[np.bool_]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Cross-validate the digits demo.")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, metavar="FOLD", help="run this fold, from 0, and pool nothing")
    parser.add_argument("--output", type=Path, default=Path("runs/digits_crossval"))
    for key, part in PARTS.items():
        parser.add_argument(
            f"--{key}", action="append", default=[], metavar="KEY=VALUE", help=f"for {part.recipe}.yaml"
        )
    arguments = parser.parse_args()
    return guarded(lambda: crossvalidate(arguments))


def crossvalidate(arguments: argparse.Namespace) -> int:
    if arguments.only is not None:
        run_fold(arguments, arguments.only)
        return 0
    folds = [run_fold(arguments, fold) for fold in range(arguments.folds)]
    pooled = {key: np.concatenate([correct[key] for correct in folds]) for key in PARTS}
    summary = summarise(pooled)
    (arguments.output / "crossval.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(table(summary))
    return 0


def run_fold(arguments: argparse.Namespace, fold: int) -> Correct:
    """The four recipes on one fold; who was right on which of its test images."""
    folder = arguments.output / f"fold-{fold}"
    here = [f"task.data.folds={arguments.folds}", f"task.data.fold={fold}"]
    taught = [f"teacher.model={folder / 'teacher'}", "teacher_recipe=null"]
    print(f"fold {fold + 1} of {arguments.folds}: {folder}", file=sys.stderr)
    for key, part in PARTS.items():
        theirs = [] if key == "teacher" else taught
        overrides = [*getattr(arguments, key), *here, *theirs, f"output_dir={folder / key}"]
        run(load_recipe(part.config, overrides), title=part.title)
    return correct_in(folder)


def correct_in(folder: Path) -> Correct:
    """Whether each part's model was right on each of a fold's test images."""
    items = {key: items_of(folder / key) for key in PARTS}
    for key, found in items.items():
        assert np.array_equal(found.index, items["teacher"].index), f"{key} is measured on the same images"
    return {key: found.scores[TOP1] == 100 for key, found in items.items()}


def summarise(pooled: Correct) -> dict[str, Any]:
    """Top-1 in percent of every model; differences in points with their 95 % intervals."""
    summary: dict[str, Any] = {"images": len(pooled["student"])}
    summary["top1"] = {key: 100 * float(correct.mean()) for key, correct in pooled.items()}
    for rival in RIVALS:
        mean, low, high = paired_bootstrap(pooled["student"], pooled[rival])
        summary[f"student_minus_{rival}"] = {"mean": mean, "low": low, "high": high}
    return summary


def table(summary: dict[str, Any]) -> str:
    lines = [f"{summary['images']} images, pooled over the folds"]
    lines += [f"{PARTS[key].title:<20} {value:7.2f} %" for key, value in summary["top1"].items()]
    for rival in RIVALS:
        gap = summary[f"student_minus_{rival}"]
        interval = f"95 % interval {gap['low']:+.2f} to {gap['high']:+.2f}"
        lines.append(f"{'student - ' + PARTS[rival].title:<20} {gap['mean']:+7.2f} points, {interval}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
