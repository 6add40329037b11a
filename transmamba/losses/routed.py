"""Losses over what routers say of their experts: which they are of, and what they read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core.batch import Batch
from ..core.output import Capture, Captures
from ..distillation.signals import Loss, Signals
from ..errors import UserError

# by stream, (layer, the router's name within it) -> how many experts it chooses from
Routers = Mapping[str, Mapping[tuple[int, str], int]]


def some(loss: str, routers: Routers) -> Routers:
    """The same. Raises UserError for a student without experts."""
    if not any(routers.values()):
        raise UserError(
            f"loss {loss} compares what a student's routers say of its experts, and this student has no "
            "experts; "
            "leave it out, or give the student experts"
        )
    return routers


class RoutedLoss(Loss):
    """A loss over what routers say, of real tokens.

    routers: by stream, (layer, the router's name within it) and how many experts it has
    """

    needs_teacher = False
    names: tuple[str, ...] = ("router",)

    def __init__(self, routers: Routers, weight: float) -> None:
        super().__init__(weight)
        self.routers = routers
        self.places = [(stream, layer, name) for stream, each in routers.items() for layer, name in each]
        self.counts = [count for each in routers.values() for count in each.values()]

    def item(self, batch: Batch) -> str:
        return "tokens"

    def student_captures(self) -> Captures:
        found: dict[str, dict[int, set[str]]] = {}
        for stream, layer, name in self.places:
            wanted = found.setdefault(stream, {}).setdefault(layer, set())
            wanted |= {kind + name for kind in self.names}
        return {
            stream: Capture(mixers={layer: frozenset(names) for layer, names in layers.items()})
            for stream, layers in found.items()
        }

    def said(self, signals: Signals, kind: str) -> list[Tensor]:
        """Of each router a tensor (B, L, ...)."""
        streams = signals.student.streams
        return [streams[stream].mixers[layer][kind + name] for stream, layer, name in self.places]

    def real(self, signals: Signals) -> list[Tensor]:
        """Of each router 1 for real tokens and 0 for padding, (B, L)."""
        found = []
        for (stream, _, _), logits in zip(self.places, self.said(signals, "router"), strict=True):
            mask = signals.student.streams[stream].mask
            ones = torch.ones_like(logits[..., 0])
            found.append(ones if mask is None else ones * mask)
        return found
