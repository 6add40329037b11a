"""What is wrong with a configuration: pydantic's complaints as one line a path, with the value and what to
write instead; and what YAML misread, repaired."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, cast

from ..errors import suggest
from .file import kind_of, show

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One complaint of pydantic: its path in the data, the value there, the dataclasses that hold the key."""

    path: tuple[str | int, ...]
    value: Any
    owners: tuple[type, ...]
    details: Any

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
    def wanted(self) -> str | None:
        kind = self.details["type"]
        if kind.startswith("dataclass"):
            return "a mapping (key: value)"
        if kind == "literal_error":
            return str(self.details["ctx"]["expected"])
        return WANTED.get(re.sub(r"_(type|parsing|required|from_float|required_to_be_.*)$", "", kind))

    @property
    def message(self) -> str:
        kind, context = self.details["type"], self.details.get("ctx", {})
        if kind in ("unexpected_keyword_argument", "extra_forbidden"):
            names = [field.name for owner in self.owners for field in dataclasses.fields(owner)]
            hint, _, known = suggest(str(self.path[-1]), names).partition(" known: ")
            return f"unknown key{hint}" if "mean" in hint else f"unknown key; known: {known}"
        if kind == "missing":
            return "required, but missing"
        if kind == "value_error":
            return str(context["error"])
        if kind == "literal_error" and isinstance(self.value, str):
            choices = re.findall(r"'([^']*)'", context["expected"])
            return f"unknown value {self.value!r}{suggest(self.value, choices)}"
        text = self.details["msg"].replace("Input should", "it should")
        return f"{show(self.value)}: {text}"


def lines_of(problems: list[Problem]) -> list[str]:
    """`path: message`, one line a path: the branches of a union become alternatives of one sentence."""
    by_path: dict[str, list[Problem]] = {}
    for problem in problems:
        by_path.setdefault(".".join(map(str, problem.path)), []).append(problem)
    lines = []
    for path, group in by_path.items():
        wanted = [problem.wanted for problem in group]
        messages = [problem.message for problem, want in zip(group, wanted, strict=True) if want is None]
        if (
            len(group) == 1
            and group[0].details["type"] == "literal_error"
            and isinstance(group[0].value, str)
        ):
            messages = [group[0].message]
        if not messages:
            alternatives = " or ".join(dict.fromkeys(cast(list[str], wanted)))
            messages = [f"{show(group[0].value)} is {kind_of(group[0].value)}; write {alternatives}"]
        lines += [f"{path}: {message}" if path else message for message in dict.fromkeys(messages)]
    return lines


def _float(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _whole(value: Any) -> int | None:
    number = value if isinstance(value, float) else _float(value)
    return int(number) if number is not None and number.is_integer() else None
