"""What pages and cards share: templates, where they are written, what a run ran on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError


def render_template(template: str, /, *, html: bool, **values: Any) -> str:
    """A template of this folder with these values. html: they are escaped."""
    import jinja2  # here, for it is slow and only pages need it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def write_page(path: Path, text: str, option: str = "--output") -> Path:
    """Raises UserError where nothing can be written there; `option` says where else."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{path.parent}: {path.name} cannot be written there ({reason}); "
            f"write it elsewhere: {option} {path.name}"
        ) from None
    return path


def provenance(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of when, how and on what a run was made, as far as its environment.json says."""
    packages = environment.get("packages") or {}
    device, processes = environment.get("device"), environment.get("num_processes")
    machine = f"{processes} × {device}" if device and processes and processes > 1 else device
    found = [
        ("date", environment.get("date")),
        ("command", environment.get("command")),
        ("commit", environment.get("commit")),
        ("machine", machine),
        ("driver", environment.get("driver")),
        ("CUDA", environment.get("cuda")),
        ("Python", environment.get("python")),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
    ]
    return [(what, _words(value)) for what, value in found if value]


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
