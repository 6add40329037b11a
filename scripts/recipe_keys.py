"""Every key that a recipe may hold, with its default and its meaning, out of the configuration classes.

python scripts/recipe_keys.py > docs/recipe_keys.md
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from transmamba.api import student_models
from transmamba.config.registry import (
    BENCHMARKS,
    GENERATED,
    LOSSES,
    PAIRS,
    QUESTIONS,
    READERS,
    STUDENTS,
    TASKS,
    TEACHERS,
    TEXTS,
    Registry,
)
from transmamba.config.retired import RETIRED
from transmamba.reporting.tracking import WandbConfig
from transmamba.runs.adapter import Adapter
from transmamba.runs.recipe import Recipe, Scratch
from transmamba.subcloning.subclone import SubcloneConfig
from transmamba.training.stage import Stage, TrainerConfig

HEAD = """# The keys of a recipe

Made from the code by `python scripts/recipe_keys.py`. A recipe is a YAML file; on the command line `a.b=c`
overrides a key and `stages.0.lr=1e-3` one of a list. A part is written `{name: NAME, key: value}`, or its
name alone. A mapping as override sets its own keys and leaves the others (`{}` empties); one that names
another part takes its place, and a line says which options that drops. What is wrong with a recipe is told
before anything runs, all of it at once; `--dry-run` prints the recipe with everything that was left out.
Parts of your own appear in it as these do:
[adding_a_part.md](adding_a_part.md). What losses compute: [method.md](method.md).
"""
SECTIONS: tuple[tuple[str, type], ...] = (
    ("The recipe", Recipe),
    ("init", SubcloneConfig),
    ("stages, each", Stage),
    ("trainer", TrainerConfig),
    ("scratch", Scratch),
    ("adapter", Adapter),
    ("wandb", WandbConfig),
)
PARTS: tuple[tuple[str, Registry], ...] = (
    ("teacher", TEACHERS),
    ("student", STUDENTS),
    ("losses, each", LOSSES),
    ("task", TASKS),
    ("task.data", READERS),
    ("task.data, pictures with captions", PAIRS),
    ("task.data, texts", TEXTS),
    ("task.data, questions about pictures", QUESTIONS),
    ("task.benchmarks, each", BENCHMARKS),
    ("task.generated, each", GENERATED),
)
_ENTRY = re.compile(r"(\w+(?:, \w+)*): +(.*)")


def page() -> str:
    """The whole page."""
    parts: list[str] = [HEAD]
    for title, section in SECTIONS:
        parts += [f"## {title}\n", *described(section)]
    for title, registry in PARTS:
        parts.append(f"## {title}\n")
        if registry is STUDENTS:
            names = ", ".join(f"`{name}`" for name in student_models())
            parts.append(f"timm names of ours, for `vim` and `ssd_vit`: {names}.\n")
        for name in registry:
            parts += [f"### `{name}`\n", *described(registry[name])]
            for field, below, several in nested(registry[name]):
                each = ", each" if several else ""
                parts += [f"### `{title.split(',')[0]}.{field}`{each}\n", *described(below)]
    parts += ["## Keys that are gone\n", *gone()]
    return "\n".join(parts).rstrip() + "\n"


def gone() -> Iterator[str]:
    """What became of the keys of earlier versions."""
    yield "\n".join(
        ["| key | |", "|---|---|", *(f"| `{key}` | {text} |" for key, text in RETIRED.items()), ""]
    )


def described(part: Any) -> Iterator[str]:
    """What the docstring says of the whole, then a table of the keys, those of its bases as these say it."""
    text, meanings = entries(inspect.getdoc(part) or "")
    for base in filter(dataclasses.is_dataclass, part.__mro__[1:]):
        meanings = {**entries(inspect.getdoc(base) or "")[1], **meanings}
    yield f"{text}\n"
    fields = dataclasses.fields(part)
    rows = [f"| `{field.name}` | {default(field)} | {meanings.get(field.name, '')} |" for field in fields]
    if rows:
        yield "\n".join(["| key | default | |", "|---|---|---|", *rows, ""])


def nested(part: Any) -> Iterator[tuple[str, type, bool]]:
    """The fields of a part that are mappings of keys of their own: (field, its class, whether a list of
    them)."""
    for field, hint in typing.get_type_hints(part).items():
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        for member in typing.get_args(hint) if union else (hint,):
            below = typing.get_args(member)[0] if typing.get_origin(member) is tuple else member
            if isinstance(below, type) and dataclasses.is_dataclass(below):
                yield field, below, below is not member


def entries(text: str) -> tuple[str, Mapping[str, str]]:
    """A docstring's words about the whole, and those about its keys: `key: ...` or `key, key: ...`, whose
    further lines are indented."""
    whole: list[str] = []
    found: dict[str, str] = {}
    current: list[str] = []
    for line in text.splitlines():
        entry = _ENTRY.match(line)
        if entry:
            current = entry[1].split(", ")
            found |= dict.fromkeys(current, entry[2])
        elif current and line.startswith(" "):
            found |= {key: f"{found[key]} {line.strip()}" for key in current}
        else:
            current = []
            whole.append(line)
    cells = {key: meaning.replace("|", "\\|") for key, meaning in found.items()}
    return re.sub(r"\n{3,}", "\n\n", "\n".join(whole)).strip(), cells


def default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "*needed*"
    if dataclasses.is_dataclass(value):
        return "as below"
    if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        return f"`[{', '.join(type(part).name for part in value)}]`"
    shown = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True)
    return f"`{shown.replace('...', '').strip()}`"


if __name__ == "__main__":
    sys.stdout.write(page())
