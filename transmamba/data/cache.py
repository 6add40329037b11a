"""Small files that spare a second look at large data: where they lie, and how they are written."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """~/.cache/transmamba/KIND, or the same below XDG_CACHE_HOME."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "transmamba" / kind


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that others see whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place, since other ranks, perhaps on other machines, may be writing the same file.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
