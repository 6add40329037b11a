"""transmamba turns a pretrained Transformer into a Mamba student.

Importing it registers the students in timm: `timm.create_model("vim_tiny_patch16_224")`.
"""

from . import students as _students  # noqa: F401  (registers our models in timm)
from .api import convert, distill, evaluate, load_student, push_to_hub, save_student
from .core.batch import Batch, image_batch
from .distillation.distiller import Distiller
from .errors import ConfigError, UserError
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
    "adapt_teacher",
    "convert",
    "distill",
    "evaluate",
    "image_batch",
    "load_student",
    "load_teacher",
    "push_to_hub",
    "save_student",
]
