"""What the library that loads a model says of it, for whoever writes its model card."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the library that loads a student says of it.

    library:      as the Hub calls it: timm, open_clip, transformers
    pipeline_tag: the Hub's word for what it does: `image-classification`
    snippet:      Python code that loads and uses it
    licence:      an identifier that the Hub knows; None where the teacher's is not known, and none claimed
    base_model:   the teacher's repository on the Hub, if it has one
    description:  a sentence or two that the card begins with
    """

    library: str
    pipeline_tag: str
    snippet: str
    licence: str | None = None
    base_model: str | None = None
    description: str = ""
