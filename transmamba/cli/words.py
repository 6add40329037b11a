"""What words of the command line mean: arguments, and options written key=value."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import UserError

# what argparse calls the kinds of values that arguments here have
_KINDS = {"int": "a whole number", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """One whose mistakes are a line, as all others are, and not a page of usage before it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(_in_a_line(message, self.prog))


def _in_a_line(message: str, prog: str) -> str:
    """argparse's message, with what to write instead."""
    if found := re.fullmatch(r"argument (\S+): invalid choice: (.+?) \(choose from (.+)\)", message):
        name, value, choices = found.groups()
        return f"{name} is {value}; write one of {choices.replace(chr(39), '')}"
    if found := re.fullmatch(r"argument (\S+): invalid (int|float) value: (.+)", message):
        name, kind, value = found.groups()
        return f"{name} is {value}; write {_KINDS[kind]}"
    if found := re.fullmatch(r"the following arguments are required: (.+)", message):
        # what may be left out is named beside what may not
        missing = [name for name in found[1].split(", ") if name not in ("key=value", "...")]
        return f"{', '.join(missing)}: missing; see {prog} --help"
    return f"{message.removeprefix('argument ')}; see {prog} --help"


def parsed(parser: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, options and key=value in any order. Raises UserError for words that mean nothing here.

    `parse_args` of sub-parsers would take key=value only before the first option.
    """
    arguments, rest = parser.parse_known_intermixed_args(words)
    if rest:
        options = re.findall(r"--[\w-]+", parser.format_help())
        close = difflib.get_close_matches(rest[0].partition("=")[0], options, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see {parser.prog} --help"
        raise UserError(f"{' '.join(rest)}: {parser.prog} takes no such argument; {hint}")
    return arguments


def pairs(options: Sequence[str]) -> dict[str, Any]:
    """key=value words, each value as YAML reads it. Raises UserError for what is none."""
    import yaml

    found = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"option {option!r} is no key=value")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"option {option!r}: {value!r} is no YAML value; put it in quotes") from error
    return found


def nested(options: Sequence[str]) -> dict[str, Any]:
    """key=value words with dots in their keys, as mappings within each other: `image.kind=vim`. Raises
    UserError for what is none, and for a key that is both a value and has values below it."""
    from ..config.file import apply_override

    found: dict[str, Any] = {}
    for option in options:
        key, equals, _ = option.partition("=")
        if not equals:
            raise UserError(f"option {option!r} is no key=value")
        steps = key.split(".")
        place: Any = found
        for depth, step in enumerate(steps[:-1]):
            place = place.get(step) if isinstance(place, dict) else place
            if place is None:
                break
            if not isinstance(place, dict):
                above = ".".join(steps[: depth + 1])
                raise UserError(f"option {option!r}: {above} is {place!r} already; write one of the two")
        try:
            apply_override(found, option)
        except ValueError as error:
            raise UserError(f"option {option!r}: {error}") from error
    return found


def below(prefix: str, options: Sequence[str]) -> list[str]:
    """Those of `options` that begin with `prefix`, without it."""
    return [word.removeprefix(prefix) for word in options if word.startswith(prefix)]
