"""The demo's honest figure: 5-fold on the handwritten digits, predictions pooled over all 1,797 images.

    python scripts/digits_crossval.py --output runs/digits_crossval
    python scripts/digits_crossval.py --output runs/tiny --teacher stages.0.epochs=1 \
        stages.0.steps=2 stages.1.steps=2

For every fold a teacher is trained, a student distilled and the same student trained from scratch, all by the
demo's recipes with only the fold changed. Prints the pooled top-1 of each and the paired bootstrap intervals,
and writes OUTPUT/crossval.json. Started again, it continues where it stopped.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transmamba.cli.mistakes import guarded
from transmamba.evaluation.compare import paired_bootstrap
from transmamba.reporting.samples import ITEMS_FILE, read_items
from transmamba.runs.run import load_recipe, run

CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "configs"
MODELS = ("teacher", "student", "scratch")

Correct = dict[str, npt.NDArray[np.bool_]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Cross-validate the digits demo.")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/digits_crossval"))
    parser.add_argument("--config", type=Path, default=CONFIGS / "digits_vit_to_vim.yaml")
    parser.add_argument("--teacher-config", type=Path, default=CONFIGS / "digits_vit.yaml")
    parser.add_argument("--teacher", action="append", default=[], metavar="KEY=VALUE", help="for the teacher")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for the distillation")
    arguments = parser.parse_intermixed_args()
    return guarded(lambda: crossvalidate(arguments))


def crossvalidate(arguments: argparse.Namespace) -> int:
    folds = [run_fold(arguments, fold) for fold in range(arguments.folds)]
    pooled = {name: np.concatenate([correct[name] for correct in folds]) for name in folds[0]}
    summary = summarise(pooled)
    (arguments.output / "crossval.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(table(summary))
    return 0


def run_fold(arguments: argparse.Namespace, fold: int) -> Correct:
    """Train, distil and train from scratch on one fold; who was right on which of its test images."""
    folder = arguments.output / f"fold-{fold}"
    here = [f"task.data.folds={arguments.folds}", f"task.data.fold={fold}"]
    teacher = [*arguments.teacher, *here, f"output_dir={folder / 'teacher'}"]
    distil = [
        *arguments.overrides,
        *here,
        f"output_dir={folder / 'distil'}",
        f"teacher.model={folder / 'teacher'}",
        "teacher_recipe=null",
    ]
    print(f"fold {fold + 1} of {arguments.folds}: {folder}", file=sys.stderr)
    run(load_recipe(arguments.teacher_config, teacher))
    run(load_recipe(arguments.config, distil))
    return correct_in(folder / "distil")


def correct_in(run_folder: Path) -> Correct:
    """Whether each model was right on each test image; the baseline's answers lie in its own folder."""
    (items,) = read_items(run_folder / ITEMS_FILE)
    correct = {name: items.scores[f"{name}/top1"] == 100 for name in ("teacher", "student")}
    if (run_folder / "scratch" / ITEMS_FILE).is_file():
        (own,) = read_items(run_folder / "scratch" / ITEMS_FILE)
        assert np.array_equal(own.index, items.index), "the baseline is evaluated on the same images"
        correct["scratch"] = own.scores["student/top1"] == 100
    return correct


def summarise(pooled: Correct) -> dict[str, Any]:
    """Top-1 in percent of every model; differences in points with their 95 % intervals."""
    summary: dict[str, Any] = {"images": len(pooled["student"])}
    summary["top1"] = {name: 100 * float(pooled[name].mean()) for name in MODELS if name in pooled}
    for other in ("scratch", "teacher"):
        if other in pooled:
            mean, low, high = paired_bootstrap(pooled["student"], pooled[other])
            summary[f"student_minus_{other}"] = {"mean": mean, "low": low, "high": high}
    return summary


def table(summary: dict[str, Any]) -> str:
    lines = [f"{summary['images']} images, pooled over the folds"]
    lines += [f"{name:<20} {value:7.2f} %" for name, value in summary["top1"].items()]
    for other in ("scratch", "teacher"):
        gap = summary.get(f"student_minus_{other}")
        if gap:
            interval = f"95 % interval {gap['low']:+.2f} to {gap['high']:+.2f}"
            lines.append(f"{'student - ' + other:<20} {gap['mean']:+7.2f} points, {interval}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
