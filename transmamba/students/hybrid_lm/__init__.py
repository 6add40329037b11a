"""A language model that keeps some attention layers and has Mamba-2 in place of the others: the student
`hybrid_lm`, saved as a Bamba or a GraniteMoeHybrid of transformers, or with a class of its own."""

from . import names  # noqa: F401  (registers the student)
