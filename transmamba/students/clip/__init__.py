"""A dual encoder of open_clip whose towers became Mamba: the model, its plan, the shapes it takes from a
teacher."""

from . import names  # noqa: F401  (registers the student)
