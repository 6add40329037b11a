"""What a student that transformers loads has of its teacher beside weights, for whoever saves it."""

from __future__ import annotations

from typing import Any

from ..ecosystems.origin import Origin
from ..ecosystems.texts import Beside


class Carried:
    """reads:  how its pictures and texts become inputs
    origin: whose its weights are
    beside: processor, tokenizer with chat template, and how to generate
    """

    reads: Any = None
    origin: Origin = Origin()
    beside: Beside = Beside()

    @property
    def chats(self) -> bool:
        """Whether its tokenizer has a chat template."""
        return getattr(self.beside.tokenizer, "chat_template", None) is not None

    def carry(self, preprocessing: Any, licence: str | None, base_model: str | None) -> None:
        """What lies beside the teacher comes with `carry_texts`."""
        self.reads, self.origin = preprocessing, Origin(licence, base_model)

    def carry_texts(self, beside: Beside) -> None:
        self.beside = beside
