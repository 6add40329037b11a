"""The student `hf_llava`: a LLaVA of transformers, trained as it is, or put together out of an image tower
and a language model."""

from . import names  # noqa: F401  (registers the student)
