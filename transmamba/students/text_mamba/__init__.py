"""A CLIP's text tower whose attention became a causal Mamba-2 mixer: its shape, model and plan, and how
open_clip builds it."""

from .model import TextMamba
from .shape import TextShape, text_shape

__all__ = ["TextMamba", "TextShape", "text_shape"]
