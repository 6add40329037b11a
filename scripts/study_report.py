"""A study's run folders as a page of tables, intervals and figures, in two steps.

    python scripts/study_report.py collect STUDY.yaml docs/study
    python scripts/study_report.py render docs/study docs/study_data_efficiency.md

`collect` reads every finished cell of STUDY.yaml (scripts/study.py runs them) into docs/study/cells.json, a
line a cell, and docs/study/correct.npz, who was right on which test image. It adds to what is there: a cell
collected earlier stays when its folder is gone, and one that differs is replaced with a line said, so a study
may be run in several goes on several machines. `render` needs these two files alone; it writes the part of
the page between `<!-- generated: begin -->` and `<!-- generated: end -->`, and the figures beside the files.

The study's axes are arm, fraction and seed, and optionally setting and student; its
`report: compare: [[a, b], ...]` names further pairs of arms to compare; `report: scratch_of: {a: b}` says
that setting a differs from b in the teacher alone, so that b's runs from scratch are its own too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from study_cell import Bits, Cell, read_cell, read_first
from study_differences import share_of
from study_file import grid, name_of

from transmamba.cli.launch import guarded
from transmamba.errors import UserError, suggest

CELLS, CORRECT = "cells.json", "correct.npz"
AXES = ("setting", "student", "arm", "fraction", "seed")
NEEDED_AXES = ("arm", "fraction", "seed")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("collect", help="run folders -> FOLDER/cells.json and FOLDER/correct.npz")
    verb.add_argument("study", type=Path)
    verb.add_argument("folder", type=Path)
    verb.add_argument("--runs", type=Path, help="where the cells' folders lie, if not in its output_dir")
    verb.set_defaults(verb=lambda given: collect(given.study, given.folder, given.runs))
    verb = verbs.add_parser("render", help="these two -> the generated part of PAGE, and the figures")
    verb.add_argument("folder", type=Path)
    verb.add_argument("page", type=Path)
    verb.set_defaults(verb=lambda given: render(given.folder, given.page))
    arguments = parser.parse_args(argv)
    return guarded(lambda: arguments.verb(arguments))


def collect(study_path: Path, folder: Path, runs: Path | None = None) -> int:
    """Add the finished cells of a study to `folder`. Raises UserError if there is none at all."""
    study = read_study(study_path)
    runs = runs or Path(study["output_dir"])
    old, old_bits = read_collected(folder) if (folder / CELLS).is_file() else ({"cells": []}, {})
    if old["cells"] and list(old["axes"]) != list(study["axes"]):
        raise UserError(f"{folder / CELLS} has axes {', '.join(old['axes'])}; choose another folder")
    cells = {name_of(cell["labels"]): cell for cell in old["cells"]}
    bits, counts = dict(old_bits), {"new": 0, "same": 0, "replaced": 0, "left out": 0, "not finished": 0}
    needed, study["first"] = study["first"], dict(old.get("first", {}))
    for name in needed:
        try:
            run = read_first(runs / name)
        except UserError as error:
            _leave_out(error, counts)
            continue
        if run is not None:
            study["first"][name] = run
    for labels in grid(study["axes"]):
        name = name_of(labels)
        try:
            found = read_cell(runs / name, labels)
        except UserError as error:
            _leave_out(error, counts)
            continue
        if found is None:
            counts["not finished"] += name not in cells
            continue
        cell, right = found
        same = cells.get(name) == cell and np.array_equal(bits[name], right)
        outcome = "same" if same else "replaced" if name in cells else "new"
        if outcome == "replaced":
            print(f"replaced: {name}, {_change(cells[name], cell)}", file=sys.stderr)
        counts[outcome] += 1
        cells[name], bits[name] = cell, right
    if not cells:
        raise UserError(f"{runs}: no finished cell of {study_path}; run scripts/study.py first")
    axes = {axis: list(labels) for axis, labels in study["axes"].items()}
    for axis, cell in itertools.product(axes, cells.values()):
        if cell["labels"][axis] not in axes[axis]:  # of an earlier version of the study
            axes[axis].append(cell["labels"][axis])
    write_collected(folder, axes, study, cells, bits)
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    print(f"{folder}: {len(cells)} cells ({told})")
    return 0


def render(folder: Path, page: Path) -> int:
    """Write the figures and the generated part of `page` from what `collect` left in `folder`."""
    from study_page import write_page  # and with it matplotlib, which `collect` can do without

    header, bits = read_collected(folder)
    write_page(header, bits, folder, page)
    print(f"{page}: {len(header['cells'])} cells")
    return 0


def _leave_out(error: UserError, counts: dict[str, int]) -> None:
    print(f"left out: {error}", file=sys.stderr)
    counts["left out"] += 1


def _change(old: Cell, new: Cell) -> str:
    """What a replaced cell has that it had not."""
    keys = [key for key in new if old.get(key) != new[key]]
    if "top1" in keys:
        return f"top-1 {old['top1']:.2f} before, {new['top1']:.2f} now"
    return f"another {', '.join(keys) or 'answer on some image'}"


# --- the study ---


def read_study(path: Path) -> dict[str, Any]:
    """output_dir, axes (axis -> labels), compare and scratch_of of a study file.

    Not a `study_file.Study`: the page needs no recipes and no table, but axes that it knows. Raises UserError
    for what is wrong.
    """
    try:
        study = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}; write the path of a study") from None
    if not isinstance(study, dict) or not isinstance(study.get("axes"), dict) or "output_dir" not in study:
        raise UserError(f"{path}: a study has output_dir and axes")
    if not isinstance(study["output_dir"], str):
        raise UserError(f"{path}: output_dir is {study['output_dir']!r}; write a folder")
    for axis, labels in study["axes"].items():
        if not isinstance(labels, dict) or not labels:
            raise UserError(f"{path}: axis {axis} is {labels!r}; write label: overrides")
    axes = {str(axis): list(map(str, labels)) for axis, labels in study["axes"].items()}
    for axis in axes:
        if axis not in AXES:
            raise UserError(f"{path}: unknown axis {axis!r}{suggest(axis, AXES)}")
    if missing := [axis for axis in NEEDED_AXES if axis not in axes]:
        raise UserError(f"{path}: no axis {missing[0]!r}; the page needs {', '.join(NEEDED_AXES)}")
    for label in axes["fraction"]:
        share_of(label)
    compare = (study.get("report") or {}).get("compare") or []
    for pair in compare:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{path}: report.compare: {pair!r}; write [[arm, arm], ...]")
        for arm in pair:
            if arm not in axes["arm"]:
                raise UserError(
                    f"{path}: report.compare: unknown arm {arm!r}{suggest(str(arm), axes['arm'])}"
                )
    scratch_of = (study.get("report") or {}).get("scratch_of") or {}
    if not isinstance(scratch_of, dict):
        raise UserError(f"{path}: report.scratch_of: {scratch_of!r}; write {{setting: setting}}")
    for setting in (*scratch_of, *scratch_of.values()):
        if setting not in axes.get("setting", ()):
            known = suggest(str(setting), axes.get("setting", []))
            raise UserError(f"{path}: report.scratch_of: unknown setting {setting!r}{known}")
    first = [name for name in study.get("first") or {} if "${" not in name]
    chosen = {"axes": axes, "compare": compare, "scratch_of": scratch_of, "first": first}
    return {"output_dir": study["output_dir"], **chosen}


# --- what is collected ---


def write_collected(
    folder: Path,
    axes: dict[str, list[str]],
    study: Mapping[str, Any],
    cells: dict[str, Cell],
    bits: dict[str, Bits],
) -> None:
    """The same cells make the same bytes: sorted, a line a cell, the archive without dates."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: bits[name] for name in sorted(cells)}
    np.savez(folder / CORRECT, **arrays)
    lines = [_line({key: cells[name][key] for key in sorted(cells[name])}) for name in sorted(cells)]
    told = "".join(f'"{key}": {_line(study[key])},\n' for key in ("compare", "scratch_of", "first"))
    head = f'"axes": {_line(axes)},\n{told}"cells": [\n'
    (folder / CELLS).write_text("{\n" + head + ",\n".join(lines) + "\n]\n}\n", encoding="utf-8")


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read_collected(folder: Path) -> tuple[dict[str, Any], dict[str, Bits]]:
    """axes, compare, scratch_of, first and cells; packed correctness by name.

    Raises UserError if one is missing or damaged.
    """
    try:
        header = json.loads((folder / CELLS).read_text(encoding="utf-8"))
        with np.load(folder / CORRECT, allow_pickle=False) as file:
            bits = {name: file[name] for name in file.files}
        names = {name_of(cell["labels"]) for cell in header["cells"]}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder}: cannot be read ({error}); collect a study into it first") from None
    if not names:
        raise UserError(f"{folder / CELLS}: no finished cell; collect a study into it first")
    if names != bits.keys():
        raise UserError(f"{folder}: {CELLS} and {CORRECT} hold different cells; collect again")
    return header, bits


if __name__ == "__main__":
    sys.exit(main())
