"""What a launch that is refused had written by then, taken away again; what lay there before stays."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError


@dataclass(frozen=True)
class Before:
    """What lay at a folder's place before a launch wrote there.

    made: of the folder and those above it, those that were not there, the innermost first
    """

    folder: Path
    names: frozenset[str]
    made: tuple[Path, ...]


def before(folder: Path) -> Before:
    there = frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset[str]()
    return Before(folder, there, tuple(path for path in (folder, *folder.parents) if not path.exists()))


@contextlib.contextmanager
def withdrawn(before: Before, written: Collection[str], begun: Callable[[], bool]) -> Iterator[None]:
    """Within it a UserError removes what is new in the folder, of the names that may be `written` there,
    unless something has `begun` that can be gone on with. By the one process that writes there."""
    try:
        yield
    except UserError:
        if not begun():
            for name in set(written) - before.names:
                path = before.folder / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def unmade(before: Before) -> Iterator[None]:
    """Within it a UserError removes the folders that were not there before, where they are empty: outside of
    whatever holds a lock in them."""
    try:
        yield
    except UserError:
        for path in before.made:
            try:
                path.rmdir()
            except OSError:  # something lies there
                break
        raise
