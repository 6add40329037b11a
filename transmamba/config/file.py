"""A YAML file and its `key=value` overrides as plain values, before any type is known."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, near, suggest

# libyaml's, eight times as fast, where PyYAML was built with it
_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """What the file holds, nothing where it is empty. Raises ConfigError: no such file, invalid YAML, a key
    given twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), [_absent(path, error)]) from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), ["not a text file in UTF-8"]) from None
    try:
        data = _parse(text)
        repeated = list(_repeated(yaml.compose(text, Loader=_FAST)))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-99-99
        raise ConfigError(str(path), [_invalid(error)]) from None
    if repeated:
        raise ConfigError(str(path), repeated)
    if data is not None and not isinstance(data, dict):
        raise ConfigError(str(path), [f"the file holds {kind_of(data)}; write a mapping (key: value)"])
    return data or {}


def _parse(text: str) -> Any:
    """What YAML says; an error is PyYAML's own, which says more exactly where it is."""
    try:
        return yaml.load(text, Loader=_FAST)
    except yaml.YAMLError:
        return yaml.safe_load(text)


def _absent(path: Path, error: OSError) -> str:
    if not path.parent.is_dir():
        return f"no such file, nor the folder {path.parent}"
    meant = near(path, sorted(entry.name for entry in path.parent.glob("*.yaml")))
    reason = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
    return f"{reason}; did you mean {str(meant)!r}?" if meant else f"{reason}"


def _invalid(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}invalid YAML: {reason}"


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


def apply_override(data: dict[str, Any], override: str) -> list[str]:
    """Sets one `a.b.0.c=value` in `data`; a mapping is merged into a mapping that is there (`merged`).

    Returns a sentence for each part that lost options to another one. Raises ValueError when the override is
    malformed or leads nowhere.
    """
    path, equals, text = override.partition("=")
    if not equals:
        raise ValueError("write key=value, such as trainer.seed=1")
    if path.startswith("-"):
        raise ValueError(f"write it without dashes: {override.lstrip('-')}")
    steps = path.split(".")
    if not all(steps):
        raise ValueError("a part of the path is empty; write key=value, such as trainer.seed=1")
    try:
        value = _parse(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no YAML value ({_invalid(error)})") from None
    place: Any = data
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if last and isinstance(place, list) and step == str(len(place)):
            place.append(None)  # one behind the last
        key = _key(place, step, ".".join(steps[:depth]))
        below = place.get(key) if isinstance(place, dict) else place[key]
        if last:
            place[key], lost = merged(below, value, path)
            return lost
        if below is None and steps[depth + 1].isdigit():
            there = suggest(step, place) if isinstance(place, dict) else ""
            raise ValueError(f"{'.'.join(steps[: depth + 1])} has no items in the file{there}")
        if isinstance(below, str):
            below = {"name": below}  # the short form of a part gains options
        elif below is None:
            below = {}
        place[key] = below
        place = below
    raise AssertionError("a path has a last step")


def merged(old: Any, new: Any, path: str) -> tuple[Any, list[str]]:
    """What an override with `new` makes of `old` at `path`, and a sentence for each part that lost options.

    A mapping sets its own keys and leaves the others, at every depth; the empty one empties. A mapping that
    names another part, or that part's bare name, takes the place of the part with all its options. Whatever
    else is written takes the place of what was there.
    """
    if not isinstance(old, dict) or not new or not isinstance(new, str | dict):
        return new, []
    was = old.get("name")
    name = new.get("name", was) if isinstance(new, dict) else new
    if was is not None and name != was:
        kept = new if isinstance(new, dict) else {}
        lost = [key for key, value in old.items() if key != "name" and not _restated(key, value, kept)]
        told = f"{path}: {show(name)} takes the place of {show(was)}, whose {', '.join(lost)} are dropped"
        return new, [told] if lost else []
    if isinstance(new, str):
        return (new if was is None else old), []
    result, notes = dict(old), []
    for key, value in new.items():
        result[key], found = merged(old.get(key), value, f"{path}.{key}")
        notes += found
    return result, notes


def _restated(key: str, value: Any, new: dict[str, Any]) -> bool:
    """Whether `new` says all that `key: value` said, if only by saying it otherwise."""
    return key in new and (not isinstance(value, dict) or new[key] == value)


def _key(place: Any, step: str, path: str) -> str | int:
    if isinstance(place, dict):
        return step
    if not isinstance(place, list):
        raise ValueError(f"{path} is {kind_of(place)}, which has no {step!r}")
    if not step.isdigit():
        raise ValueError(f"{path} is a list; write an index instead of {step!r}")
    if int(step) >= len(place):
        raise ValueError(
            f"{path} has no item {step}; its last is {len(place) - 1}" if place else f"{path} is empty"
        )
    return int(step)


def kind_of(value: Any) -> str:
    """What a value is, in the words of YAML."""
    kinds: dict[type, str] = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
    }
    return "empty" if value is None else kinds.get(type(value), "a mapping")


def show(value: Any) -> str:
    """A value as it was written, cut where it is long."""
    return json.dumps(value) if value is None or isinstance(value, bool) else reprlib.repr(value)
