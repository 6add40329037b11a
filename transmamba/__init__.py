"""transmamba turns a pretrained Transformer into a Mamba student.

Importing it registers the students in timm: `timm.create_model("vim_tiny_patch16_224")`.
"""

from . import students as _students  # noqa: F401  (registers our models in timm)
from .api import convert, distill, evaluate, load_student, push_to_hub, save_student
from .distillation.distiller import Distiller
from .errors import ConfigError, UserError
from .subcloning.subclone import SubcloneConfig
from .teachers.teacher import Teacher, adapt_teacher, load_teacher

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Distiller",
    "SubcloneConfig",
    "Teacher",
    "UserError",
    "adapt_teacher",
    "convert",
    "distill",
    "evaluate",
    "load_student",
    "load_teacher",
    "push_to_hub",
    "save_student",
]
