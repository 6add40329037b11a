"""What the user did wrong, said in one line: what, the value, what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class UserError(ValueError):
    """A mistake the user can mend. The command line prints it and exits with status 2, without a
    traceback."""


class MissingExtra(UserError):
    """What parts of a kind need is not installed. Said once, whatever was asked for."""


class NoSplit(UserError):
    """A reader was not told where this split lies."""


class WrongTeacher(UserError):
    """A student of a kind that is not made of such a teacher. Whoever knows the teacher's name adds it."""

    def of(self, source: str) -> UserError:
        return UserError(f"teacher {source!r}: {self}")


class Inexpressible(UserError):
    """A model of a library we know, with a part that no canonical view has."""


class ConfigError(UserError):
    """All problems of one configuration, printed at once: one in a line, several in a line each."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        several = [f"{len(problems)} problems", *(f"  {problem}" for problem in problems)]
        said = problems[0] if len(problems) == 1 else "\n".join(several)
        super().__init__(f"config error: {source}: {said}")


class WrongValues(ValueError):
    """Everything that is wrong with the values of one configuration. The loader tells each problem in a line
    of its own, under the path of the field with which it begins: `lr is -1; write a number above 0`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


def refuse_all(problems: Sequence[str]) -> None:
    """Raises WrongValues with every problem, if there is any."""
    if problems:
        raise WrongValues(problems)


def near(path: Path, names: Iterable[str]) -> Path | None:
    """Of what lies beside a path that is not there, the one that was perhaps meant."""
    # without what all of them end in, by which any two of them would look alike
    stems = {name.removesuffix(path.suffix): name for name in names}
    close = difflib.get_close_matches(path.name.removesuffix(path.suffix), list(stems), n=1)
    return path.parent / stems[close[0]] if close else None


def suggest(name: str, known: Iterable[str], *, limit: int = 16) -> str:
    """`; did you mean 'vim'? known: ssd_vit, vim`, the tail of a message about an unknown name."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    listed = ", ".join(names[:limit]) + (" ..." if len(names) > limit else "")
    return f"{hint} known: {listed or 'none'}"
