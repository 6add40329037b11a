"""What is wrong with a configuration: pydantic's complaints as one line a path, with the value and what to
write instead; and what YAML misread, repaired."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

from ..errors import MissingExtra, WrongValues, suggest
from .file import kind_of, show
from .retired import retired

Keys = tuple[str | int, ...]

# What to write instead, by the type of pydantic's complaint.
WANTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number, such as 0.001",
    "string": "text (in quotes)",
    "path": "a path",
    "tuple": "a list, such as [a, b]",
    "list": "a list, such as [a, b]",
    "frozen_set": "a list, such as [a, b]",
    "set": "a list, such as [a, b]",
    "dict": "a mapping (key: value)",
    "none": "null",
}
# What other libraries call a choice of ours.
ELSEWHERE = {"fp32": "no", "float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One complaint of pydantic.

    path, value: where in the data, and what is there
    owners:      the dataclasses that hold the last key
    kinds:       the dataclasses that the value may be
    elsewhere:   the paths of other keys with the last key's name
    """

    path: Keys
    value: Any
    owners: tuple[type, ...]
    kinds: tuple[type, ...]
    details: Any
    elsewhere: tuple[str, ...] = ()

    def repair(self, data: Any) -> bool:
        """Puts into `data` what YAML 1.1 misread: the number that 1e-4 is, the word `no` that it takes for
        false."""
        kind = self.details["type"]
        convert = {"float_type": _float, "int_type": _whole, "int_from_float": _whole}.get(kind)
        repaired: Any = convert(self.value) if convert else None
        if kind == "literal_error" and self.value is False and "'no'" in self.details["ctx"]["expected"]:
            repaired = "no"
        if repaired is None or not self.path:
            return False
        for step in self.path[:-1]:
            data = data[step]
        data[self.path[-1]] = repaired
        return True

    @property
    def refused(self) -> list[tuple[str, str]]:
        """(key, what is wrong) of each value that the dataclass itself refused: all that it says of its key,
        where it begins with one and `is`; without a key what is about the whole."""
        if self.details["type"] != "value_error":
            return []
        error = self.details["ctx"]["error"]
        names = {field.name for kind in self.kinds for field in dataclasses.fields(kind)}
        found = []
        for text in error.problems if isinstance(error, WrongValues) else [str(error)]:
            key, said, rest = text.partition(" is ")
            found.append((key, rest) if said and key in names else ("", text))
        return found

    @property
    def missing(self) -> MissingExtra | None:
        """What is to be installed before its part can be looked for."""
        error = self.details.get("ctx", {}).get("error")
        return error if isinstance(error, MissingExtra) else None

    @property
    def wanted(self) -> str | None:
        kind = self.details["type"]
        if kind.startswith("dataclass"):
            return "a mapping (key: value)"
        if kind == "literal_error":
            return str(self.details["ctx"]["expected"])
        return WANTED.get(re.sub(r"_(type|parsing|required|from_float|required_to_be_.*)$", "", kind))

    @property
    def message(self) -> str:
        kind = self.details["type"]
        if kind in ("unexpected_keyword_argument", "extra_forbidden"):
            gone = retired(dotted(self.path))
            if gone is not None:
                return f"unknown key, {gone}"
            if self.elsewhere:
                return f"unknown key here; write {' or '.join(map(repr, self.elsewhere))}"
            names = [field.name for owner in self.owners for field in dataclasses.fields(owner)]
            hint, _, known = suggest(str(self.path[-1]), names).partition(" known: ")
            return f"unknown key{hint}" if "mean" in hint else f"unknown key; known: {known}"
        if kind == "missing":
            return "required, but missing"
        if kind == "literal_error" and isinstance(self.value, str):
            choices = re.findall(r"'([^']*)'", self.details["ctx"]["expected"])
            ours = ELSEWHERE.get(self.value)
            if ours in choices:
                return f"unknown value {self.value!r}; here that is {ours!r}"
            return f"unknown value {self.value!r}{suggest(self.value, choices)}"
        text = self.details["msg"].replace("Input should", "it should")
        return f"{show(self.value)}: {text}"


def dotted(path: Keys) -> str:
    """`stages.0.lr`"""
    return ".".join(map(str, path))


def lines_of(problems: Sequence[Problem]) -> list[str]:
    """`path: message`, one line a problem: the branches of a union become alternatives of one sentence."""
    by_path: dict[str, list[Problem]] = {}
    for problem in problems:
        by_path.setdefault(dotted(problem.path), []).append(problem)
    lines = []
    for path, group in by_path.items():
        if path and isinstance(group[0].value, dict) and any(o.startswith(f"{path}.") for o in by_path):
            group = [problem for problem in group if problem.wanted is None]  # a mapping is what it may be
        for key, message in _messages(group) if group else ():
            where = ".".join(filter(None, (path, key)))
            lines.append(f"{where}: {message}" if where else message)
    return list(dict.fromkeys(lines))


def leave_out(data: Any, problems: Sequence[Problem]) -> set[Keys]:
    """Takes what is wrong out of `data`, so that what is around it can be checked; the paths of what went.

    A key is removed. An item of a list gives its place to another, so that the places of all stay as they
    are.
    """
    gone: set[Keys] = set()
    for problem in problems:
        keyed = [(*problem.path, key) for key, _ in problem.refused if key]
        paths = keyed if keyed and isinstance(problem.value, dict) else [problem.path]
        gone.update(path for path in paths if path and _left_out(data, path, problems))
    return gone


def _left_out(data: Any, path: Keys, problems: Sequence[Problem]) -> bool:
    """Whether it was there."""
    for step in path[:-1]:
        data = data.get(step) if isinstance(data, dict) else data[step]
        if not isinstance(data, dict | list):
            return False  # never there, or gone with what it lay in
    last = path[-1]
    if isinstance(data, dict):
        return data.pop(last, path) is not path
    wrong = {problem.path[: len(path)] for problem in problems}
    sound = [item for place, item in enumerate(data) if (*path[:-1], place) not in wrong]
    if sound:
        data[last] = sound[0]
    return bool(sound)


def _messages(group: Sequence[Problem]) -> Iterator[tuple[str, str]]:
    """(key below, message) of the problems of one path."""
    first = group[0]
    refusing = [problem for problem in group if problem.refused]
    for problem in refusing:
        yield from problem.refused
    rest = [problem for problem in group if problem not in refusing]
    told = [problem for problem in rest if problem.wanted is None]
    word = first.details["type"] == "literal_error" and isinstance(first.value, str)
    if len(group) == 1 and word:
        told = rest
    for problem in told:
        yield "", problem.message
    if rest and not told and not refusing:
        alternatives = " or ".join(dict.fromkeys(cast(str, problem.wanted) for problem in rest))
        yield "", f"{show(first.value)} is {kind_of(first.value)}; write {alternatives}"


def _float(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _whole(value: Any) -> int | None:
    number = value if isinstance(value, float) else _float(value)
    return int(number) if number is not None and number.is_integer() else None
