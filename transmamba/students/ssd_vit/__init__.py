"""A vision transformer whose attention became a Mamba-2 mixer: the model, its plan, its names in timm."""

from . import names  # noqa: F401  (registers the student, and its models in timm)
