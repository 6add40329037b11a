"""The steps between two log lines, summed up; a checkpoint that falls between them keeps the sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Window:
    """What is summed between two log lines. A loss that has no items in some of the steps is averaged over
    those that had it: `taken` says how many."""

    sums: dict[str, float] = field(default_factory=dict)
    parts: dict[str, Tensor] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    items: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    waited: float = 0.0
    grad_norm: float = 0.0

    def add(
        self,
        means: Mapping[str, float],
        parts: Mapping[str, Tensor],
        total: float,
        items: Mapping[str, int],
        seconds: float,
        waited: float,
        norm: float,
    ) -> None:
        """A step: the means of its losses and of their per-layer parts, the losses' weighted total."""
        for key, value in {"loss": total, **{f"loss/{name}": value for name, value in means.items()}}.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.taken[key] = self.taken.get(key, 0) + 1
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0) + part
        self.steps += 1
        for kind, number in items.items():
            self.items[kind] = self.items.get(kind, 0) + number
        self.seconds += seconds
        self.waited += waited
        self.grad_norm += norm

    def means(self) -> dict[str, float]:
        """Of every loss, over the steps that had it."""
        return {key: value / self.taken[key] for key, value in self.sums.items()}

    def part_means(self) -> dict[str, Tensor]:
        return {name: part / self.taken[f"loss/{name}"] for name, part in self.parts.items()}

    def rates(self) -> dict[str, float]:
        """Items a second of each kind: `samples_per_second`, `tokens_per_second` ..."""
        return {f"{kind}_per_second": number / self.seconds for kind, number in self.items.items()}

    def saved(self) -> dict[str, Any]:
        """As JSON, for a checkpoint between two log lines."""
        return {**vars(self), "parts": {name: part.tolist() for name, part in self.parts.items()}}

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Window:
        """Inverse of `saved`; of nothing, an empty window."""
        parts = {name: torch.tensor(part) for name, part in saved.get("parts", {}).items()}
        return cls(**{**saved, "parts": parts})
