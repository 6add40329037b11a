"""Sparse dimension tuning (SDT, https://arxiv.org/abs/2410.09016): single numbers of the scan, chosen by a
warm-up that `transmamba.peft.sdt.choose` makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...config.registry import METHODS
from ...errors import refuse_all
from .method import Edit, Method, Mixer, Place, Start, Tensors


@METHODS.register("sdt")
@dataclass(frozen=True, kw_only=True)
class SDT(Method):
    """Of A_log a few states of a few channels, and those channels' columns of the rows of B and C: deltas
    from 0. Which ones is saved with the adapter; before `choose` they are spread evenly.

    In Mamba-2, where a head has one decay and B and C read the stream itself, the channels of A_log are
    heads, and columns are the stream's.

    channels: share of the channels
    states:   share of a channel's states; all of them in B and C
    """

    channels: float = 0.01
    states: float = 0.1
    merges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = (("channels", self.channels), ("states", self.states))
        refuse_all(
            [f"{key} is {n}; write a share above 0 and up to 1" for key, n in shares if not 0 < n <= 1]
        )

    def counts(self, mixer: Mixer, suffix: str) -> tuple[int, int, int, int]:
        """(rows of A_log, columns of B, how many rows, how many columns) are there and are chosen."""
        rows = mixer.shape(self.rates(mixer, suffix))[0]
        columns = mixer.matrix(self.reader(mixer, "b", suffix))[1]
        return rows, columns, max(1, round(self.channels * rows)), max(1, round(self.channels * columns))

    def rates(self, mixer: Mixer, suffix: str) -> Place:
        return next(p for p in self.places(mixer, "a", "decay rates") if p.suffix == suffix)

    def reader(self, mixer: Mixer, what: str, suffix: str) -> Place:
        return next(p for p in self.places(mixer, what, f"rows of {what.upper()}") if p.suffix == suffix)

    def tensors(self, mixer: Mixer) -> dict[str, Start]:
        starts = {}
        for suffix in mixer.directions:
            name = f"{self.name}{suffix}"
            rows, columns, some, few = self.counts(mixer, suffix)
            per_row = mixer.matrix(self.rates(mixer, suffix))[1]
            states = max(1, round(self.states * per_row))
            starts[f"{name}_rows"] = Start((some,), f"spread {rows}", torch.int64, buffer=True)
            starts[f"{name}_columns"] = Start((few,), f"spread {columns}", torch.int64, buffer=True)
            starts[f"{name}_states"] = Start((some, states), f"spread {per_row}", torch.int64, buffer=True)
            starts[f"{name}_a"] = Start((some, states))
            for what in ("b", "c"):
                starts[f"{name}_{what}"] = Start((mixer.matrix(self.reader(mixer, what, suffix))[0], few))
        return starts

    def edit(self, edit: Edit, tensors: Tensors) -> None:
        for suffix in edit.mixer.directions:
            name = f"{self.name}{suffix}"
            rates = self.rates(edit.mixer, suffix)
            shape = edit.mixer.matrix(rates)
            rows, states = tensors[f"{name}_rows"], tensors[f"{name}_states"]
            delta = tensors[f"{name}_a"]
            whole = delta.new_zeros(shape).index_put((rows[:, None], states), delta)
            edit.add(rates, whole.view(edit.mixer.shape(rates)))
            columns = tensors[f"{name}_columns"]
            for what in ("b", "c"):
                place = self.reader(edit.mixer, what, suffix)
                edit.add(place, spread(tensors[f"{name}_{what}"], columns, edit.mixer.matrix(place)))


def spread(delta: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """Columns of a matrix that is 0 elsewhere."""
    return delta.new_zeros(shape).index_add(1, columns, delta)
