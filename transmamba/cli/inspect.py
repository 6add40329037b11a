"""`transmamba inspect`: what a model is as a teacher."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runs.inspect import Inspection


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help="RUN, STUDENT, a timm name, a Hugging Face id or folder, an open_clip NAME/TAG, a .gguf or a "
        "file of weights",
    )
    parser.add_argument("--architecture", metavar="NAME", help="of a model that is a file of weights alone")
    parser.add_argument(
        "--check",
        action="store_true",
        help="load the weights, and run view and model side by side; exit status 1 where they differ by "
        "more than 1e-5 of the largest number (1e-2 in float16, 8e-2 in bfloat16), or where there is no "
        "view, as of a student",
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def run(arguments: argparse.Namespace) -> int:
    from ..runs.inspect import inspect

    found = inspect(arguments.source, check=arguments.check, architecture=arguments.architecture)
    print(json.dumps(found.as_dict(), indent=2) if arguments.json else "\n".join(lines_of(found)))
    if not arguments.check or found.agrees:
        return 0
    if found.converted is not None:
        sys.stderr.write(
            f"{arguments.source}: a student has no view to hold against it; `transmamba evaluate "
            f"{arguments.source}{_task(found)} --teacher TEACHER` measures it\n"
        )
    if found.agrees is False:
        sys.stderr.write(f"{arguments.source}: {_unlike(found)}\n")
    return 1


def _task(found: Inspection) -> str:
    """What `evaluate` is told of a student's task, where it is not the usual one."""
    reads = {tower["reads"] for tower in found.towers.values()}
    names = {"text": "language", "image text": "questions" if found.parts else "image_text"}
    task = names.get(" ".join(sorted(reads)))
    return "" if task is None else f" --task {task}"


def _unlike(found: Inspection) -> str:
    worst = max(found.differences, key=lambda name: found.differences[name])
    return (
        f"view and model are not the same: {worst} differs by {found.difference:.2g}, and {found.most:g} is "
        f"the most in {found.precision}"
    )


def lines_of(found: Inspection) -> Iterator[str]:
    """What a terminal shows."""
    counted = f": {found.parameters:,} parameters, {found.precision}" if found.parameters else ""
    kind = found.kind or found.model
    yield f"{found.source} ({kind if found.converted is None else f'student, {kind}'}){counted}"
    for name, tower in found.towers.items():
        yield ""
        yield from _tower(name, tower)
    if found.parts:
        yield ""
    for name, part in found.parts.items():
        yield f"{name:<14} {_pairs(part)}"
    if found.refused is not None:
        yield f"refused        {found.refused.removeprefix('teacher ')}"
    else:
        yield ""
    if found.converted is not None:
        yield f"converted      {', '.join(found.converted) or 'no tower: every block has attention'}"
    if found.covered is not None:
        yield f"began with     {100 * found.covered:.1f} % of its parameters from its teacher's"
    if found.scalars:
        numbers = {name: "-" if value is None else f"{value:.4g}" for name, value in found.scalars.items()}
        yield f"scalars        {_pairs(numbers)}"
    yield f"licence        {found.licence or 'not said'}"
    if found.base_model:
        yield f"base model     {found.base_model}"
    for name, read in found.reads.items():
        yield f"{name:<14} {_pairs(read) if read else 'none beside it'}"
    for name, refused in found.students.items():
        yield f"{'student':<14} {name}{f': no, {refused}' if refused else ''}"
    if found.differences:
        worst = max(found.differences, key=lambda name: found.differences[name])
        yield (
            f"difference     {found.difference:.2g} of the largest activation ({worst}), over "
            f"{len(found.differences)} outputs and streams"
        )


def _tower(name: str, tower: Mapping[str, Any]) -> Iterator[str]:
    kind = f"{tower['kind']}, " if "kind" in tower else ""  # of a student's
    counted = f", {tower['parameters']:,} parameters" if "parameters" in tower else ""
    if "opaque" in tower:
        yield f"{name}: {tower['opaque']}, only run: no view expresses it, so it is never converted{counted}"
        return
    yield f"{name}: {kind}width {tower['width']}, {tower['blocks']} blocks, reads {tower['reads']}{counted}"
    if kind:
        yield f"  mixers       {_mixers(tower['sublayers'])}"
    yield f"  embedding    {_pairs(tower['embedding'])}"
    for run in tower["sublayers"]:
        numbers = f"{run['first']}" if run["first"] == run["last"] else f"{run['first']}-{run['last']}"
        for sublayer in run["of"]:
            rest = {key: value for key, value in sublayer.items() if key != "kind"}
            yield f"  {numbers:<12} {sublayer['kind']}: {_pairs(rest)}"
    yield f"  last norm    {tower['norm']}"
    yield f"  head         {_pairs(tower['head']) if tower['head'] else 'none: it teaches features'}"


def _mixers(runs: Sequence[Mapping[str, Any]]) -> str:
    """`mamba2 0-2 4-6, attention 3 7`: which blocks have which."""
    places: dict[str, list[int]] = {}
    for run in runs:
        places.setdefault(run["of"][0]["kind"], []).extend(range(run["first"], run["last"] + 1))
    return ", ".join(f"{kind} {_ranges(blocks)}" for kind, blocks in places.items())


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2 5` of ascending numbers."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return " ".join("-".join(map(str, ends)) for ends in found)


def _pairs(values: Mapping[str, Any]) -> str:
    """`heads 9, kv heads 3, causal`: what is absent is left out."""
    shown = []
    for name, value in values.items():
        word = name.replace("_", " ")
        if value is True:
            shown.append(word)
        elif name == "kind":
            shown.append(str(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            shown.append(f"{word} {value:,}")
        elif value not in (None, False, "none", [], 1.0):
            shown.append(f"{word} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}")
    return ", ".join(shown)
