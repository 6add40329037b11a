"""A teacher by what the user calls it: a folder, a timm name or a Hugging Face id."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.registry import TEACHERS
from .load import load_teacher
from .teacher import Teacher


@TEACHERS.register("auto")
@dataclass(frozen=True, kw_only=True)
class Auto:
    """Whatever teacher a name means.

    model: a run or model folder, a timm name, or a Hugging Face id
    """

    model: str

    def build(self) -> Teacher:
        return load_teacher(self.model)
