"""transmamba turns a pretrained Transformer into a Mamba student.

Importing it costs no torch: a public name is imported when it is first used. With it timm knows the students,
and open_clip the text towers among them, whichever is imported first:
`timm.create_model("vim_tiny_patch16_224")`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .ecosystems import hooks

if TYPE_CHECKING:
    from .api import distill, evaluate, load_student, push_to_hub, save_student
    from .core.batch import Batch, image_batch
    from .distillation.distiller import Distiller
    from .errors import ConfigError, UserError
    from .runs.generate_data import Writing, generate_data
    from .runs.inspect import inspect
    from .runs.select_layers import select_layers
    from .subcloning.convert import convert
    from .subcloning.subclone import SubcloneConfig
    from .teachers.load import adapt_teacher, load_teacher
    from .teachers.teacher import Teacher

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "ConfigError",
    "Distiller",
    "SubcloneConfig",
    "Teacher",
    "UserError",
    "Writing",
    "adapt_teacher",
    "convert",
    "distill",
    "evaluate",
    "generate_data",
    "image_batch",
    "inspect",
    "load_student",
    "load_teacher",
    "push_to_hub",
    "save_student",
    "select_layers",
]

# where each is; a name that is not here is the module api's
_HOME = {
    "Batch": "core.batch",
    "ConfigError": "errors",
    "Distiller": "distillation.distiller",
    "SubcloneConfig": "subcloning.subclone",
    "Teacher": "teachers.teacher",
    "UserError": "errors",
    "Writing": "runs.generate_data",
    "adapt_teacher": "teachers.load",
    "convert": "subcloning.convert",
    "generate_data": "runs.generate_data",
    "image_batch": "core.batch",
    "inspect": "runs.inspect",
    "load_teacher": "teachers.load",
    "select_layers": "runs.select_layers",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


hooks.install()
