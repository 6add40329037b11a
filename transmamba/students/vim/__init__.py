"""Vision Mamba as a student: the model, its plan, its names in timm, the official checkpoints."""

from . import names  # noqa: F401  (registers the student, and its models in timm)
