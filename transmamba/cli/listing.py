"""`transmamba list`: the parts that recipes choose from."""

from __future__ import annotations

import argparse
import inspect

from ..errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        nargs="?",
        help="teachers, students, losses, tasks, readers, pairs, texts, questions, benchmarks or "
        "functions; all if left out",
    )


def run(arguments: argparse.Namespace) -> int:
    from ..config import registry

    kinds = {
        "teachers": registry.TEACHERS,
        "students": registry.STUDENTS,
        "losses": registry.LOSSES,
        "tasks": registry.TASKS,
        "readers": registry.READERS,
        "pairs": registry.PAIRS,
        "texts": registry.TEXTS,
        "questions": registry.QUESTIONS,
        "benchmarks": registry.BENCHMARKS,
        "functions": registry.FUNCTIONS,
    }
    if arguments.kind is not None and arguments.kind not in kinds:
        raise UserError(f"unknown kind {arguments.kind!r}; write one of {', '.join(kinds)}")
    for kind, parts in kinds.items():
        if arguments.kind not in (None, kind):
            continue
        print(f"{kind}:")
        for name in parts:
            print(f"  {name:<20} {summary(parts[name])}")
            print(f"  {'':<20} {', '.join(registry.options(parts[name])) or 'no options'}")
    if arguments.kind in (None, "students"):
        from ..subcloning.convert import student_models

        print(f"student models (timm names): {', '.join(student_models())}")
    return 0


def summary(part: type) -> str:
    """The first sentence of a part's docstring, on one line."""
    first = " ".join((inspect.getdoc(part) or "").split("\n\n")[0].split())
    sentence, stop, _ = first.partition(". ")
    return f"{sentence}." if stop else first
