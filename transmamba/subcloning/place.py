"""The folder that a model is written to: nothing of the user's is lost, and nothing is half written."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from ..ecosystems.folders import MODEL_FILES, OPEN_CLIP_CONFIG, model_folder
from ..errors import UserError


def check_apart(teacher: str, out: Path) -> None:
    """Raises UserError where `out` is, contains, or lies within what the teacher is read from."""
    named = Path(teacher.partition(":")[2] if teacher.startswith("local-dir:") else teacher).expanduser()
    theirs = model_folder(named) or named
    if not teacher or not theirs.exists():
        return
    out = out.expanduser()
    above, above_theirs = _upwards(out), _upwards(theirs)
    if _same(theirs, above[0]):
        how = "is the teacher"
    elif any(_same(theirs, folder) for folder in above[1:]):
        how = "lies within the teacher"
    elif any(_same(folder, above[0]) for folder in above_theirs[1:]):
        how = "holds the teacher"
    else:
        return
    raise UserError(f"{out}: {how} {teacher}, of which nothing may be lost; write another folder")


def _upwards(path: Path) -> list[Path]:
    whole = path.resolve()
    return [whole, *whole.parents]


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b or (a.exists() and b.exists() and a.samefile(b))


def check_place(out: Path, overwrite: bool) -> None:
    """Raises UserError where something is lost: without --overwrite anything, with it what is no model."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UserError(
            f"{out}: is not empty; write another folder, or --overwrite (in Python overwrite=True)"
        )
    if not any((out / name).is_file() for name in ("config.json", OPEN_CLIP_CONFIG)):
        raise UserError(
            f"{out}: holds no model (no config.json), so it is not overwritten; write another folder"
        )


@contextlib.contextmanager
def written_to(out: Path) -> Iterator[Path]:
    """A folder to write a model into, beside `out`; at the end it takes the place of `out`, with those files
    of `out` that are not a model's. All or nothing: what was there is gone only after that.

    Raises UserError where it cannot be written; `out` is then as it was.
    """
    out = out.expanduser().resolve()  # a link to a folder stays one
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".converting-", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    try:
        yield partial
        if out.exists():
            _keep_others(out, partial)
        partial.chmod(0o755)
        _replace(partial, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _keep_others(old: Path, new: Path) -> None:
    """The user's own files of `old` in `new` too: linked, or copied where there are no links."""
    for path in old.iterdir():
        kept = new / path.name
        if kept.exists() or any(fnmatch.fnmatch(path.name, name) for name in MODEL_FILES):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, kept, symlinks=True, copy_function=_link)
        else:
            _link(str(path), str(kept))


def _link(source: str, target: str, *, follow_symlinks: bool = False) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _replace(new: Path, out: Path) -> None:
    """Move `new` to `out`; where that fails, `out` is what it was. Raises OSError."""
    if not out.exists():
        new.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=".replaced-", dir=out.parent))
    try:
        old = out.rename(aside / out.name)
        try:
            new.rename(out)
        except OSError:
            old.rename(out)
            raise
    except OSError:
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
