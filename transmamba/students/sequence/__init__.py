"""Models of sequences of points, of one layer pattern: what learns functions in context, and is distilled
from a Transformer that did."""

from . import names  # noqa: F401  (registers the student)
