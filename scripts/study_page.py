"""The generated part of a study's page: what ran, the bars, tables and figures of each setting and student.

`write_page(header, bits, folder, page)`, from what `scripts/study_report.py collect` wrote, puts it between
the two markers of `page` and leaves the text around them alone.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from study_bars import bars, differences
from study_differences import DRAWS, Place, Study, from_scratch, share_of
from study_figures import Curves, Points, draw_curves, draw_fractions, figure_name
from study_tables import mean_and_deviation, table

from transmamba.errors import UserError

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"


def write_page(
    header: Mapping[str, Any], bits: Mapping[str, npt.NDArray[np.uint8]], folder: Path, page: Path
) -> None:
    """Raises UserError if the page or one of its markers is missing."""
    before, after = around(page)
    study = Study(header, bits)
    text = "\n\n".join(sections(study, folder, page.parent))
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def around(page: Path) -> tuple[str, str]:
    """The hand-written text before and after the markers."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page}: {error.strerror}; write a page with the lines {BEGIN} and {END}") from None
    for marker in (BEGIN, END):
        if text.count(marker) != 1:
            raise UserError(f"{page}: {text.count(marker)} times {marker!r}; write it once, on its own line")
    before, rest = text.split(BEGIN)
    if END not in rest:
        raise UserError(f"{page}: {END!r} stands before {BEGIN!r}; exchange them")
    return before, rest.split(END)[1]


def sections(study: Study, folder: Path, root: Path) -> Iterable[str]:
    """The generated Markdown in parts; draws the figures into `folder`, linked from a page in `root`."""
    yield what_ran(study)
    if study.first:
        yield first_table(study)
    yield "## The bars"
    yield (
        "What was asked of the method, and the gate: whether its teacher leads by enough to be fair. "
        "Met or missed is said of means; an interval that holds zero may be chance."
    )
    for place in study.places:
        lines = [f"- {title(place)}: {bar}: **{verdict}**" for bar, verdict in bars(study, place)]
        yield "\n".join(lines)
    in_figures = {arm for place in study.places for arm in drawn(study, place)}
    styled = [arm for arm in study.arms if arm in in_figures]
    for place in study.places:
        yield f"## {title(place)}"
        yield top1_table(study, place)
        yield "Top-1 in percent: mean ± standard deviation (seeds). Minutes: mean of a run's training."
        yield from figures(study, place, styled, folder, root)
        yield differences_table(study, place)
    yield (
        f"Differences of top-1 in points. Intervals: {DRAWS:,} draws of seeds and of test images with "
        "replacement, the same images for both sides and, where both ran the same seeds, the same seeds. "
        "`counts`: the interval excludes zero. Of two to five seeds it is too narrow where seeds differ more "
        "than images do; of one it knows the images alone, and says `one seed`."
    )


def title(place: Place) -> str:
    return ", ".join(part for part in place if part) or "all runs"


def what_ran(study: Study) -> str:
    """How many cells there are, on what they ran and from which commits."""
    lines = [f"{len(study.cells)} cells have finished."]
    for key, noun in (("commit", "Commits"), ("device", "Devices")):
        counts = Counter(cell[key] or "not recorded" for cell in study.cells)
        lines.append(f"{noun}: {', '.join(f'{name} ({count})' for name, count in sorted(counts.items()))}.")
    versions = Counter((cell["packages"] or {}).get("torch", "not recorded") for cell in study.cells)
    lines.append(f"torch: {', '.join(f'{name} ({count})' for name, count in sorted(versions.items()))}.")
    return "\n".join(lines)


# --- tables ---


def first_table(study: Study) -> str:
    """The runs that cells need: their teachers."""
    rows = [["made first", "images seen", "top-1 on held-out images", "parameters", "minutes", "commit"]]
    for name, run in study.first.items():
        forms = {"images_seen": ",", "top1": ".2f", "params": ",", "minutes": ".1f"}
        figures = ["-" if run[key] is None else f"{run[key]:{form}}" for key, form in forms.items()]
        rows.append([f"`{name}`", *figures, run["commit"] or "-"])
    return table(rows)


def top1_table(study: Study, place: Place) -> str:
    """Rows arms, columns fractions; a second line of the head says how many training images they are."""
    rows = [["arm", *study.fractions, "teacher", "minutes a run"]]
    images = [spread(values(study, place, study.arms, [label], "train_images")) for label in study.fractions]
    if any(image != "-" for image in images):
        rows.append(["*training images*", *images, "", ""])
    for arm in study.arms:
        groups = [study.group(place, (arm, fraction)) for fraction in study.fractions]
        if not any(groups):
            continue
        shown = [mean_and_deviation(study.top1[group].tolist()) for group in groups]
        taught = [] if from_scratch(arm) else values(study, place, [arm], study.fractions, "teacher_top1")
        minutes = [values(study, place, [arm], [fraction], "minutes") for fraction in study.fractions]
        means = [statistics.mean(each) for each in minutes if each]
        rows.append([f"`{arm}`", *shown, spread(taught, ".2f"), spread(means, ".1f")])
    return table(rows)


def differences_table(study: Study, place: Place) -> str:
    rows = [["difference", "of the data", "points", "95 % interval", "seeds", ""]]
    for each in differences(study, place):
        same, seeds = each.a[1] == each.b[1], each.seeds
        rows.append(
            [
                f"`{each.a[0]}` − `{each.b[0]}`",
                each.a[1] if same else f"{each.a[1]} − {each.b[1]}",
                f"{each.mean:+.2f}",
                f"{each.low:+.2f} to {each.high:+.2f}",
                f"{seeds[0]}" if seeds[0] == seeds[1] else f"{seeds[0]}, {seeds[1]}",
                each.verdict,
            ]
        )
    return table(rows) if len(rows) > 1 else "No two arms to compare have both run."


def values(study: Study, place: Place, arms: list[str], fractions: list[str], key: str) -> list[float]:
    """`key` of every run of these arms and fractions that has it."""
    groups = [study.group(place, (arm, fraction)) for arm in arms for fraction in fractions]
    found = [study.cells[index][key] for group in groups for index in group]
    return [value for value in found if value is not None]


def spread(values: list[float], form: str = ",") -> str:
    """`3.1`, or `3.1 to 9.7` where they differ."""
    if not values:
        return "-"
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


# --- figures ---


def figures(study: Study, place: Place, styled: list[str], folder: Path, root: Path) -> Iterable[str]:
    """Draws both figures of a setting and student; links to those that there is something to draw in.

    styled: the arms of all figures, whose places give an arm its style
    """
    name, kind = figure_name(place), "validation" if _validated(study, place) else "test"
    taught = [arm for arm in study.arms if not from_scratch(arm)]
    teacher = values(study, place, taught, study.fractions, "teacher_top1")
    level = statistics.mean(teacher) if teacher else None
    shown = drawn(study, place)
    path, dots = folder / f"{name}-fraction.png", points(study, place, shown)
    path.unlink(missing_ok=True)
    if len({share for of_arm in dots.values() for share, *_ in of_arm}) > 1:
        draw_fractions(dots, styled, level, title(place), path)
        yield _link(f"{title(place)}: top-1 against share of the data", path, root)
    found = curves(study, place, shown)
    if any(found.values()):
        draw_curves(found, styled, f"{kind} top-1 (%)", title(place), folder / f"{name}-images.png")
        yield _link(f"{title(place)}: {kind} top-1 against images seen", folder / f"{name}-images.png", root)


def drawn(study: Study, place: Place) -> list[str]:
    """The arms of the figures: those that ran with two shares of the data or more, those that bars compare;
    all where that is none. A race of many arms at one share is for the table."""
    best = {group[0] for fraction in study.fractions if (group := study.baseline(place, fraction))}
    best |= {"full", "cab", "kl"}  # what bars are about
    shares = {
        arm: sum(bool(study.group(place, (arm, fraction))) for fraction in study.fractions)
        for arm in study.arms
    }
    wide = [arm for arm, ran in shares.items() if ran > 1 or (ran and arm in best)]
    return wide or [arm for arm, ran in shares.items() if ran]


def points(study: Study, place: Place, arms: list[str]) -> dict[str, Points]:
    """arm -> (share in percent, mean top-1, deviation over seeds, 0 of one), of the arms that ran."""
    found: dict[str, Points] = {}
    for arm in arms:
        for fraction in study.fractions:
            if group := study.group(place, (arm, fraction)):
                top1 = study.top1[group]
                deviation = float(top1.std(ddof=1)) if len(group) > 1 else 0.0
                found.setdefault(arm, []).append((share_of(fraction), float(top1.mean()), deviation))
    return found


def curves(study: Study, place: Place, arms: list[str]) -> dict[str, Curves]:
    """fraction -> arm -> (images seen, top-1), the mean over seeds where all of them have been evaluated."""
    found: dict[str, Curves] = {}
    for fraction in study.fractions:
        found[fraction] = {}
        for arm in arms:
            of_seeds = [study.cells[index]["curve"] for index in study.group(place, (arm, fraction))]
            of_seeds = [np.array(curve, dtype=float) for curve in of_seeds if curve]
            if of_seeds:
                found[fraction][arm] = mean_curve(of_seeds)
    return found


def mean_curve(curves: list[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Mean of curves (evaluations, 2), interpolated, wherever all of them have values."""
    low, high = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    x = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    x = x[(x >= low) & (x <= high)]
    return x, np.mean([np.interp(x, curve[:, 0], curve[:, 1]) for curve in curves], axis=0)


def _validated(study: Study, place: Place) -> bool:
    return min(values(study, place, study.arms, study.fractions, "validation")) > 0


def _link(text: str, path: Path, root: Path) -> str:
    return f"![{text}]({Path(os.path.relpath(path, root)).as_posix()})"
