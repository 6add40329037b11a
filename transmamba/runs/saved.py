"""What a run's folder says of the parts it was made of.

Each is read by itself: a recipe of an earlier version may have keys elsewhere that are gone, and its student
is measured all the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import load as configs
from ..config.file import read_yaml
from ..config.registry import Registry
from ..errors import ConfigError
from .folder import CONFIG


def run_of(path: str | Path) -> Path | None:
    """The run folder that `path` is, or that it is the student of."""
    path = Path(path).expanduser()
    return next((folder for folder in (path, path.parent) if (folder / CONFIG).is_file()), None)


def saved_part(run: Path, key: str, registry: Registry) -> Any:
    """The configuration of a run's `teacher`, `student` or `task`.

    Raises ConfigError for a damaged file, a part that is not there, and options that it no longer has.
    """
    file = run / CONFIG
    value = read_yaml(file).get(key)
    try:
        part = configs.Part(registry).config_class(value)
    except ValueError as error:
        raise ConfigError(str(file), [f"{key}: {error}"]) from None
    options = {k: v for k, v in value.items() if k != "name"} if isinstance(value, dict) else {}
    return configs.parse(part, options, f"{file}, {key}")


def has_part(run: Path, key: str) -> bool:
    """Whether the run was made with one: a teacher, for instance."""
    return read_yaml(run / CONFIG).get(key) is not None
