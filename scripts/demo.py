"""`make demo`: what transmamba is for, on data that it ships. Four recipes, one after the other, on the CPU.

    accelerate launch --quiet --config_file recipes/accelerate/cpu.yaml scripts/demo.py

First a teacher, which sees all training images; then three times the same Vim, which sees a few of them: the
student, and its rivals: one from labels alone, one from the teacher's soft labels alone. Prints one table and
what was gained, with 95 % intervals. Exits with 1 when the teacher is poor or the student is not surely ahead
of from scratch. Stopped, it goes on when called again; finished, it prints the same again.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transmamba.cli.mistakes import guarded
from transmamba.evaluation.compare import Difference, paired_difference
from transmamba.reporting.comparison import write_comparison
from transmamba.reporting.metrics import (
    AGREEMENT,
    COSTS,
    RESULTS_FILE,
    metrics_of,
    read_results,
    value_of,
    written,
)
from transmamba.reporting.samples import ITEMS_FILE, Items, read_items
from transmamba.reporting.table import text_table
from transmamba.runs.folder import INDICES, claim_folder
from transmamba.runs.recipe import Recipe
from transmamba.runs.run import load_recipe, run
from transmamba.training.trainer import Interrupted

CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "configs"
PAGE = "comparison.html"
MINUTES = "about three minutes"
ANEW = "`make demo OVERWRITE=1` trains anew"
DIGITS = 10
TOP1 = "student/top1"  # a part's own model, in its folder
# percent; the recipe gives 97.7, and 96.7 to 99.7 over five folds on another processor
TEACHER_FLOOR = 96.0


@dataclass(frozen=True)
class Part:
    """A recipe of the demo.

    title: its row of the table, and how its lines begin
    what: how it is announced
    """

    recipe: str
    title: str
    what: str

    @property
    def config(self) -> Path:
        return CONFIGS / f"{self.recipe}.yaml"


PARTS = {
    "teacher": Part("digits_vit", "teacher", "a ViT, trained with the labels of all training images"),
    "student": Part(
        "digits_vit_to_vim",
        "student",
        "a Vim that starts from the ViT's weights, is aligned with it layer by layer, then distilled",
    ),
    "scratch": Part("digits_scratch", "scratch", "the same Vim, from random weights, from labels alone"),
    "kl": Part(
        "digits_kl", "KL alone", "the same Vim, from random weights, from the ViT's soft labels alone"
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="The demo: a teacher, a student, and two rivals.")
    parser.add_argument("--overwrite", action="store_true", help="train all four anew")
    arguments = parser.parse_args()
    return guarded(lambda: demonstrate(arguments.overwrite))


def demonstrate(overwrite: bool = False) -> int:
    recipes = {key: load_recipe(part.config) for key, part in PARTS.items()}
    folders = {key: Path(recipe.output_dir) for key, recipe in recipes.items()}
    if overwrite:  # all at once: stopped in between, the next call must not take an old part for a new one
        for key, recipe in recipes.items():
            claim_folder(folders[key], recipe, overwrite=True)
    try:
        train(recipes)
    except Interrupted as stopped:
        say(f"stopped by {stopped}, and saved; `make demo` goes on")
        return stopped.code
    page = write_comparison([folders[key] for key in ("student", "scratch", "kl")], folders["student"] / PAGE)
    print(f"{table(folders)}\n\n{sentence(folders)}\n\nside by side: {page}")
    broken = broken_promises(folders)
    if broken:
        say(f"the demo does not show what it is there to show: {'; '.join(broken)}")
    return 1 if broken else 0


def train(recipes: Mapping[str, Recipe]) -> None:
    """Every part that is not finished. Raises Interrupted, and UserError where another run lies in a part's
    folder."""
    done = {key for key, recipe in recipes.items() if (Path(recipe.output_dir) / RESULTS_FILE).is_file()}
    all_done = len(done) == len(recipes)
    start = time.monotonic()
    say(f"finished before; {ANEW}" if all_done else f"{len(recipes)} parts, {MINUTES} on two idle cores")
    for number, (key, recipe) in enumerate(recipes.items(), start=1):
        part = PARTS[key]
        if not all_done:
            say(f"\n{number} of {len(recipes)}: {part.title}: {part.what}{' (finished)' * (key in done)}")
        run(recipe, title=part.title)
    if not all_done:
        say(f"\nall {len(recipes)} parts: {(time.monotonic() - start) / 60:.1f} minutes\n")


def say(text: str) -> None:
    """To where the progress bars are."""
    print(text, file=sys.stderr, flush=True)


# --- what came of it ---


def table(folders: Mapping[str, Path]) -> str:
    """A row for each part: top-1, agreement with the teacher, minutes."""
    results = {key: read_results(folder / RESULTS_FILE) for key, folder in folders.items()}
    known = {metric.key: metric for metric in (*metrics_of(results["student"]), *COSTS)}
    columns = [known[key] for key in ("top1", AGREEMENT, "minutes")]
    cells = {
        key: [written(metric, value_of(found, "student", metric)) for metric in columns]
        for key, found in results.items()
    }
    return text_table(
        ["model", *(metric.label for metric in columns)],
        [[part.title, *cells[key]] for key, part in PARTS.items()],
    )


def ahead(folders: Mapping[str, Path], rival: str) -> Difference:
    """Points of top-1 that the student is ahead of a rival on the same test images."""
    rivals, students = items_of(folders[rival]), items_of(folders["student"])
    found = paired_difference(rivals.scores[TOP1], rivals.index, students.scores[TOP1], students.index)
    assert found is not None, "both were measured on the same images"
    return found


def items_of(folder: Path) -> Items:
    """Whether a part's own model was right on each test image: `scores[TOP1]` is 100 or 0."""
    (items,) = read_items(folder / ITEMS_FILE)
    return items


def sentence(folders: Mapping[str, Path]) -> str:
    """What was gained, in plain words."""
    items = {key: items_of(folder) for key, folder in folders.items()}
    right = {key: f"{found.scores[TOP1].mean():.1f} %" for key, found in items.items()}
    images, of = shown_to(folders["student"]), len(items["student"].index)
    lines = [
        f"With {images / DIGITS:.0f} images a class ({images} in all), and no label but the teacher's word, "
        f"the student is right on {right['student']} of {of} test images.",
        f"The same Vim from scratch, by their labels: {right['scratch']}, {gain(ahead(folders, 'scratch'))}.",
        f"By the teacher's word, without its weights: {right['kl']}, {gain(ahead(folders, 'kl'))}.",
        f"The teacher, from {shown_to(folders['teacher']):,} labelled images: {right['teacher']}.",
    ]
    return "\n".join(lines)


def gain(found: Difference) -> str:
    interval = f"95 % interval {found.low:+.1f} to {found.high:+.1f}"
    return f"so the student gained {found.mean:+.1f} points ({interval})"


def shown_to(folder: Path) -> int:
    """How many images a part was trained on."""
    return len(np.load(folder / INDICES))


def broken_promises(folders: Mapping[str, Path]) -> list[str]:
    """Why the demo does not show what it is there to show; nothing where it does."""
    teacher, lead = float(items_of(folders["teacher"]).scores[TOP1].mean()), ahead(folders, "scratch")
    broken = []
    if teacher < TEACHER_FLOOR:
        broken.append(f"the teacher is right on {teacher:.2f} %, less than {TEACHER_FLOOR:g} %")
    if lead.low <= 0:
        interval = f"{lead.low:+.2f} to {lead.high:+.2f} points"
        broken.append(f"the student is not surely ahead of from scratch ({interval})")
    return broken


if __name__ == "__main__":
    sys.exit(main())
