"""A teacher by what the user calls it: a folder, a timm name or a Hugging Face id."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.registry import TEACHERS
from .load import load_teacher, outline_teacher
from .teacher import Teacher


@TEACHERS.register("auto")
@dataclass(frozen=True, kw_only=True)
class Auto:
    """Whatever teacher a name means.

    model: a run or model folder, a timm name, a Hugging Face id, or a file of weights
    architecture: the timm name of the model whose weights a file holds
    """

    model: str
    architecture: str | None = None

    def build(self) -> Teacher:
        return load_teacher(self.model, self.architecture)

    def outline(self) -> Teacher:
        """The same without weights, where its kind can be had so."""
        return outline_teacher(self.model, self.architecture)
