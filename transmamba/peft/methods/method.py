"""The contract of a method: its tensors for a mixer, and what they change there.

A method acts through one of two doors, or both. `edit` changes the mixer's weights before it runs, so that
every path that reads them sees the change, one-call kernels too. `enter` adds to what happens inside, where
the mixer then runs by its family's own code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import UserError, refuse_all
from ..families.edit import Edit
from ..families.inside import Inside
from ..families.mixer import Mixer, Place

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Start:
    """A tensor before training: `zeros`, `kaiming` (a linear layer's own), `normal` (0, 1), or `spread N`:
    whole numbers below N, evenly spread over the last dimension.

    buffer: not trained, but saved and loaded
    """

    shape: tuple[int, ...]
    fill: str = "zeros"
    dtype: torch.dtype | None = None
    buffer: bool = False

    @property
    def below(self) -> int | None:
        """What whole numbers stay below; None for others."""
        return int(self.fill.split()[1]) if self.fill.startswith("spread") else None

    def make(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        tensor = torch.zeros(self.shape, device=device, dtype=self.dtype or dtype)
        if self.fill == "kaiming":
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
        elif self.fill == "normal":
            nn.init.normal_(tensor)
        elif self.below is not None:
            count = self.shape[-1]
            tensor.copy_((torch.arange(count, device=device) * self.below) // count)
        return tensor


@dataclass(frozen=True, kw_only=True)
class Method:
    """rate, decay: what the optimizer's rate and weight decay are multiplied by for this method's tensors."""

    rate: float = 1.0
    decay: float = 1.0

    name: ClassVar[str]
    on: ClassVar[str] = "mixer"  # or "embedding": what kind of module takes it
    merges: ClassVar[bool] = False  # whether `edit` alone says all of it, so that the weights can hold it
    begins: ClassVar[bool] = False  # whether it changes the stream's start, beside the embedding
    late: ClassVar[bool] = False  # whether it moves rows, so that the others' deltas must be there before

    def __post_init__(self) -> None:
        refuse_all(
            [
                f"{option} is {value}; write a number of at least 0"
                for option, value in (("rate", self.rate), ("decay", self.decay))
                if not 0 <= value < math.inf
            ]
        )

    def tensors(self, mixer: Mixer) -> dict[str, Start]:
        """By names that begin with the method's. Raises UserError for a mixer that cannot take it."""
        raise NotImplementedError

    def decay_of(self, tensor: str) -> float:
        """What the optimizer's weight decay is multiplied by for one of its tensors."""
        return self.decay

    def edit(self, edit: Edit, tensors: Tensors) -> None:
        """Change weights of the mixer that `edit` is about."""

    def enter(self, inside: Inside, mixer: Mixer, tensors: Tensors) -> None:
        """Add to what happens inside."""

    def places(self, mixer: Mixer, what: str, words: str) -> tuple[Place, ...]:
        """The mixer's parameters called `what`; UserError in `words` where it has none."""
        found = mixer.places.get(what, ())
        if not found:
            raise UserError(f"method {self.name!r}: {mixer.kind} has no {words}; leave it out")
        return found


@dataclass(frozen=True, kw_only=True)
class Additive(Method):
    """Methods whose deltas are added to parameters: exact to merge."""

    merges: ClassVar[bool] = True
    what: ClassVar[str]
    words: ClassVar[str]

    def delta(self, place: Place, mixer: Mixer, tensors: Tensors) -> Tensor:
        """What is added to a place's rows."""
        raise NotImplementedError

    def edit(self, edit: Edit, tensors: Tensors) -> None:
        for place in self.places(edit.mixer, self.what, self.words):
            edit.add(place, self.delta(place, edit.mixer, tensors))


__all__ = ["Additive", "Edit", "Inside", "Method", "Mixer", "Place", "Start", "Tensors"]
