"""Teachers that are read out of a module of another library."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from .check import Original, check_view
from .teacher import Teacher


class OfModule(ABC):
    """A registered teacher with a `model`: what loads it, and what of it a view is made of.

    A part's `recognise(source)` and `accepts(module)` say whose it is.
    """

    model: str

    @abstractmethod
    def load(self) -> nn.Module:
        """The module with its weights, in evaluation mode."""

    @abstractmethod
    def empty(self) -> nn.Module:
        """The same from its configuration alone, its parameters on the meta device."""

    @staticmethod
    @abstractmethod
    def describe(module: nn.Module, *, source: str) -> Teacher:
        """The teacher in a module, which asks no network. Raises UserError for what no view expresses."""

    @staticmethod
    @abstractmethod
    def original(module: nn.Module) -> Original:
        """The module as its library runs it, for the view to be held against."""

    def described(self, module: nn.Module) -> Teacher:
        """The same with what lies beside `model` in its folder or repository."""
        return self.describe(module, source=self.model)

    def outline(self) -> Teacher:
        """What `build` makes, without weights: its shapes and how it reads, from its configuration."""
        return self.described(self.empty())

    def build(self) -> Teacher:
        module = self.load()
        teacher = self.described(module)
        check_view(teacher, self.original(module))
        return teacher

    @classmethod
    def adapt(cls, module: nn.Module, *, source: str) -> Teacher:
        teacher = cls.describe(module, source=source)
        check_view(teacher, cls.original(module))
        return teacher
