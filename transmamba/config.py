"""YAML and `key=value` overrides -> checked frozen dataclasses; every mistake is reported at once.

The one place where outside values become typed ones. The loader knows no recipe by name: it is given the
dataclass to fill, and `Annotated[Any, Part(REGISTRY)]` marks the fields where a registered part is chosen.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import json
import re
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast

import pydantic
import yaml
from pydantic_core import CoreSchema, core_schema

from .errors import ConfigError, suggest
from .registry import Registry

T = TypeVar("T")

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


class Part:
    """Marks a field that holds one part of `registry`: `teacher: Annotated[Any, Part(TEACHERS)]`.

    In YAML it is a mapping with `name` and the fields of the part registered so, or the bare name. A default
    is the part itself, as in `field(default_factory=lambda: LOSSES["kl"]())`: defaults are taken as they are.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._build)

    def config_class(self, value: Any) -> type:
        """The dataclass that `value` chooses. Raises ValueError saying what to write instead."""
        name = value.get("name") if isinstance(value, dict) else value
        if isinstance(name, str):
            part = cast(type, self.registry[name])
            if any(field.name == "name" for field in dataclasses.fields(part)):
                raise TypeError(f"{part.__qualname__}: a part's own field cannot be called 'name'")
            return part
        known = f"known: {', '.join(self.registry.names()) or 'none'}"
        if isinstance(value, dict) and "name" not in value:
            raise ValueError(f"has no name; write `name:` and the {self.registry.kind}'s name; {known}")
        raise ValueError(f"{_show(name)} is {_kind(name)}; write the name of a {self.registry.kind}; {known}")

    def _build(self, value: Any) -> Any:
        # A ValidationError raised in here keeps its own locations below this one.
        part = self.config_class(value)
        options = (
            {key: item for key, item in value.items() if key != "name"} if isinstance(value, dict) else {}
        )
        return _adapter(part).validate_json(json.dumps(options))


@functools.cache
def _adapter(cls: type) -> pydantic.TypeAdapter[Any]:
    # Strict JSON mode is what a config means: lists fill tuples, text fills paths, 1 is no bool and true no
    # number. Pydantic takes `config` for a union but not for a dataclass; those inside the union inherit it.
    optional: Any = Union[cls, None]  # noqa: UP007
    return pydantic.TypeAdapter(optional, config=pydantic.ConfigDict(extra="forbid", strict=True))


def parse(cls: type[T], data: Mapping[str, Any], source: str) -> T:
    """`data` as a `cls`, a frozen keyword-only dataclass. Raises ConfigError naming every problem."""
    value, problems = _check(cls, data)
    if problems:
        raise ConfigError(source, problems)
    return cast(T, value)


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """The YAML file at `path`, changed by overrides such as `stages.0.lr=1e-3`, as a `cls`.

    Raises ConfigError: no such file, invalid YAML, a key given twice, an override that fits nowhere, and
    whatever `parse` finds.
    """
    source = str(path)
    data = _read_yaml(Path(path))
    problems = []
    for override in overrides:
        try:
            _apply(data, override)
        except ValueError as error:
            problems.append(f"override {override}: {error}")
    value, found = _check(cls, data)
    if problems or found:
        raise ConfigError(source, problems + found)
    return cast(T, value)


def dump(obj: Any) -> Any:
    """`obj` as plain values that YAML and JSON can hold; a part gets its `name` first. Inverse of `parse`."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        fields = [field.name for field in dataclasses.fields(obj) if field.init]
        name = vars(type(obj)).get("name")
        head = {"name": name} if isinstance(name, str) and "name" not in fields else {}
        return head | {field: dump(getattr(obj, field)) for field in fields}
    if isinstance(obj, Mapping):
        return {str(key): dump(value) for key, value in obj.items()}
    if isinstance(obj, set | frozenset):
        return sorted(dump(item) for item in obj)
    if isinstance(obj, list | tuple):
        return [dump(item) for item in obj]
    if isinstance(obj, enum.Enum):
        return dump(obj.value)
    return str(obj) if isinstance(obj, Path) else obj


def save_yaml(obj: Any, path: str | Path, header: str = "") -> None:
    """Writes `dump(obj)` to `path`, whole or not at all, below `header` as a comment."""
    path = Path(path)
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    text = comment + yaml.safe_dump(dump(obj), sort_keys=False, allow_unicode=True, width=110)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


# --- checking ---


def _check(cls: type, data: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The object, or None and what is wrong. What YAML misread is repaired, in a copy."""
    plain = _plain(data)
    while True:
        try:
            return _adapter(cls).validate_json(json.dumps(plain)), []
        except pydantic.ValidationError as error:
            found = [_Problem.locate(cls, plain, details) for details in error.errors(include_url=False)]
        # Every repair turns text into a number, 8.0 into 8 or false into text, so this ends.
        if sum(problem.repair(plain) for problem in found) == 0:
            return None, _lines(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Problem:
    """One complaint of pydantic: its path in the data, the value there, the dataclasses that hold the key."""

    path: tuple[str | int, ...]
    value: Any
    owners: tuple[type, ...]
    details: Any

    @classmethod
    def locate(cls, root: type, data: Any, details: Any) -> _Problem:
        """Follows pydantic's location through data and types, leaving out the tags it adds for unions."""
        path: list[str | int] = []
        value, hints = data, list(_members(root, data))
        owners: tuple[Any, ...] = ()
        for step in details["loc"]:
            inside = isinstance(value, dict) and step in value
            inside = inside or (isinstance(value, list) and isinstance(step, int) and step < len(value))
            if not inside and not (details["type"] == "missing" and step == details["loc"][-1]):
                continue
            owners = tuple(hint for hint in hints if dataclasses.is_dataclass(hint))
            value = value[step] if inside else None
            hints = [
                member for hint in hints for inner in _below(hint, step) for member in _members(inner, value)
            ]
            path.append(step)
        return cls(path=tuple(path), value=value, owners=owners, details=details)

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
        return f"{_show(self.value)}: {text}"


def _plain(value: Any) -> Any:
    """A copy that JSON can hold: keys and dates become the text they were written as."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _lines(problems: list[_Problem]) -> list[str]:
    """`path: message`, one line a path: the branches of a union become alternatives of one sentence."""
    by_path: dict[str, list[_Problem]] = {}
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
            messages = [f"{_show(group[0].value)} is {_kind(group[0].value)}; write {alternatives}"]
        lines += [f"{path}: {message}" if path else message for message in dict.fromkeys(messages)]
    return lines


def _members(hint: Any, value: Any) -> Iterator[Any]:
    """The types that `hint` stands for: members of unions, the class that a part's name chooses."""
    if typing.get_origin(hint) is Annotated:
        part = next((item for item in hint.__metadata__ if isinstance(item, Part)), None)
        if part is None:
            yield from _members(hint.__origin__, value)
        else:
            with_name = value if isinstance(value, str | dict) else {}
            name = with_name.get("name") if isinstance(with_name, dict) else with_name
            if isinstance(name, str) and name in part.registry:
                yield part.registry[name]
    elif typing.get_origin(hint) in (Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _members(member, value)
    else:
        yield hint


def _below(hint: Any, step: str | int) -> list[Any]:
    """The types one step below `hint`: of a field, of an item of a list, of a value of a mapping."""
    if dataclasses.is_dataclass(hint):
        return [
            item for name, item in typing.get_type_hints(hint, include_extras=True).items() if name == step
        ]
    return [item for item in typing.get_args(hint) if item is not Ellipsis]


def _float(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _whole(value: Any) -> int | None:
    number = value if isinstance(value, float) else _float(value)
    return int(number) if number is not None and number.is_integer() else None


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
    }
    return "empty" if value is None else kinds.get(type(value), "a mapping")


def _show(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else reprlib.repr(value)


# --- reading ---


def _repeated(node: yaml.Node | None, path: str = "") -> Iterator[str]:
    """A line for each key given twice below `node`, of which YAML itself would silently keep the last."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated(item, f"{path}{index}.")
    elif isinstance(node, yaml.MappingNode):
        first: dict[Any, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in first and isinstance(key, yaml.ScalarNode):
                yield f"{path}{key.value}: given twice, on lines {first[key.value]} and {line}; keep one"
            if isinstance(key, yaml.ScalarNode):
                first[key.value] = line
            yield from _repeated(value, f"{path}{getattr(key, 'value', '?')}.")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), [_absent(path, error)]) from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), ["not a text file in UTF-8"]) from None
    try:
        repeated = list(_repeated(yaml.compose(text, Loader=yaml.SafeLoader)))
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-99-99
        raise ConfigError(str(path), [_invalid(error)]) from None
    if repeated:
        raise ConfigError(str(path), repeated)
    if data is not None and not isinstance(data, dict):
        raise ConfigError(str(path), [f"the file holds {_kind(data)}; write a mapping (key: value)"])
    return data or {}


def _absent(path: Path, error: OSError) -> str:
    if not path.parent.is_dir():
        return f"no such file, nor the folder {path.parent}"
    names = sorted(entry.name for entry in path.parent.glob("*.yaml"))
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    reason = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
    return f"{reason}; did you mean {str(path.parent / close[0])!r}?" if close else f"{reason}"


def _invalid(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}invalid YAML: {reason}"


def _apply(data: dict[str, Any], override: str) -> None:
    """Sets one `a.b.0.c=value` in `data`. Raises ValueError when it is malformed or leads nowhere."""
    path, equals, text = override.partition("=")
    if not equals:
        raise ValueError("write key=value, such as trainer.seed=1")
    if path.startswith("-"):
        raise ValueError(f"write it without dashes: {override.lstrip('-')}")
    steps = path.split(".")
    if not all(steps):
        raise ValueError("a part of the path is empty; write key=value, such as trainer.seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no YAML value ({_invalid(error)})") from None
    place: Any = data
    for depth, step in enumerate(steps):
        key = _key(place, step, ".".join(steps[:depth]))
        if depth == len(steps) - 1:
            place[key] = value
            return
        below = place.get(key) if isinstance(place, dict) else place[key]
        if below is None and steps[depth + 1].isdigit():
            raise ValueError(f"{'.'.join(steps[: depth + 1])} has no items in the file")
        if isinstance(below, str):
            below = {"name": below}  # the short form of a part gains options
        elif below is None:
            below = {}
        place[key] = below
        place = below


def _key(place: Any, step: str, path: str) -> str | int:
    if isinstance(place, dict):
        return step
    if not isinstance(place, list):
        raise ValueError(f"{path} is {_kind(place)}, which has no {step!r}")
    if not step.isdigit():
        raise ValueError(f"{path} is a list; write an index instead of {step!r}")
    if int(step) >= len(place):
        raise ValueError(
            f"{path} has no item {step}; its last is {len(place) - 1}" if place else f"{path} is empty"
        )
    return int(step)
