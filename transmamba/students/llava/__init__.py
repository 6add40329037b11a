"""A vision-language model after a LLaVA, of which either part has Mamba in place of attention: the student
`llava`, saved as transformers' LlavaForConditionalGeneration."""

from . import names, scanned  # noqa: F401  (register the student, and its image towers in timm)
