"""What each library's file in this folder offers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import nn

from ..core.card import Card
from ..core.preprocessing import PicturesAndText, Preprocessing
from ..core.text import TextOnly
from .sources import Source


class Ecosystem(Protocol):
    """One library; a module of this folder is one.

    library: its name, as the Hub has it
    """

    library: str

    def recognise(self, source: Source) -> bool:
        """Whether the library loads it, by its name or config.json, before any weights."""

    def load(self, source: Source) -> nn.Module:
        """The model with its weights, in evaluation mode. Raises UserError in one line."""

    def holds(self, model: nn.Module) -> bool:
        """Whether a model in hand is the library's."""

    def save(self, model: nn.Module, folder: Path, preprocessing: Preprocessing | None = None) -> None:
        """Write it as the library does, safetensors alone, with what its images look like."""

    def preprocessing(self, model: nn.Module) -> Preprocessing | PicturesAndText | TextOnly:
        """What its images look like; of a model that reads texts alone, its tokenizer; of one that writes
        about pictures, both."""

    def card(self, model: nn.Module) -> Card:
        """Facts for its model card."""
