"""What other libraries must know of us, told to each when it is imported, whichever comes first.

Importing this file costs nothing: it imports neither torch nor anything of ours. A finder stands first on
sys.meta_path; it finds a named library as everybody does, and lets its loader, once the library's own code
has run, import the modules of ours that register themselves in it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# library -> modules of ours that register themselves in it when they are imported
REGISTER_IN = {
    "timm": ("transmamba.students",),
    "open_clip": ("transmamba.students.text_mamba.hook",),
    "transformers.integrations.moe": ("transmamba.layers.grouped",),
    "peft": ("transmamba.peft.registration",),
    **{
        f"transformers.models.{model}.modeling_{model}": ("transmamba.ecosystems.gated_norms",)
        for model in ("bamba", "granitemoehybrid", "mamba2")
    },
}


def register_in(library: str) -> None:
    """Import what registers itself in a library, for code of ours that is about to use it."""
    for module in REGISTER_IN[library]:
        importlib.import_module(module)


def install() -> None:
    """Tell each library now, where it is imported already, else when it will be. Again does nothing."""
    if not any(getattr(finder, "tells", None) == REGISTER_IN for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for library in REGISTER_IN:
        if sys.modules.get(library) is not None:
            _tell(library)


class _Finder:
    """Finds the named libraries through the other finders, and wraps what runs their code."""

    def __init__(self) -> None:
        self.tells = REGISTER_IN
        self._asking = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # another hook may ask all finders too, and so come back here
        if name not in self.tells or getattr(self._asking, "now", False):
            return None
        self._asking.now = True
        try:
            finders = [f for f in sys.meta_path if f is not self and hasattr(f, "find_spec")]
            found = (finder.find_spec(name, path, target) for finder in finders)
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self._asking.now = False
        loader: Any = None if spec is None else spec.loader
        if hasattr(loader, "exec_module"):
            _wrap(loader, name)
        return spec


def _wrap(loader: Any, library: str) -> None:
    """On the loader itself, which stays of its own class for whoever asks it for sources or data."""
    run = loader.exec_module
    if getattr(run, "tells", None) == library:
        return

    def exec_module(module: ModuleType) -> None:
        run(module)
        if module.__name__ == library:
            _tell(library)

    exec_module.tells = library  # type: ignore[attr-defined]
    with contextlib.suppress(AttributeError, TypeError):  # a loader that takes no attribute
        loader.exec_module = exec_module


def _tell(library: str) -> None:
    try:
        register_in(library)
    except Exception as error:  # a library of somebody else's must not fail for us
        warnings.warn(f"transmamba could not register itself in {library}: {error!r}", stacklevel=2)
