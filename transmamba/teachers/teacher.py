"""A teacher: a canonical view that only looks, with what its inputs must look like.

It is deliberately no `nn.Module`: nothing can register it, so it is never in DDP, in an optimizer, in a
checkpoint or in train mode (the second invariant, kept by construction).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.batch import Batch
from ..core.output import Captures, Logits, Output
from ..errors import Inexpressible, UserError
from ..views.folding import fold
from ..views.sublayers import map_tensors, named_tensors
from ..views.view import View, Walker
from .placement import PLACEMENTS, place

Writes = Callable[[Mapping[str, Tensor], int, Mapping[str, Tensor]], Tensor]


class Teacher:
    """Frozen; call it with a batch's inputs for an `Output`.

    source:      what the user calls it
    num_params:  of the model it was read from
    class_names: of its classes, by number; None where it has none of its own
    licence, base_model: of its weights, as the Hub writes them; None where nothing says so
    writer:      what writes for it, by its own library: (inputs, at most so many new tokens, the view's
        tensors that are as they were read, by their places) to tokens; None where nothing does
    """

    def __init__(
        self,
        view: View,
        *,
        source: str,
        preprocessing: Any,
        num_params: int,
        class_names: tuple[str, ...] | None = None,
        licence: str | None = None,
        base_model: str | None = None,
        writer: Writes | None = None,
    ) -> None:
        self.view: View = map_tensors(view, lambda tensor: tensor.detach())
        self.source, self.preprocessing, self.num_params = source, preprocessing, num_params
        self.class_names, self.licence, self.base_model = class_names, licence, base_model
        self.writer = writer
        self.folded = False
        self._changed: frozenset[str] = frozenset()

    @property
    def num_classes(self) -> int | None:
        return self.view.num_classes

    @property
    def vocabulary(self) -> int | None:
        return self.view.vocabulary

    @property
    def device(self) -> torch.device:
        return self.view.tensor.device

    def to(self, device: torch.device | str) -> Teacher:
        """The same teacher there; this one stays where it is."""
        return self._with(self.view.to(device))

    def placed(self, placement: str, device: torch.device | str) -> Teacher:
        """The same teacher with its blocks `resident` on the device, `offloaded` to the host and brought over
        one by one, or `sharded` over the processes of torch.distributed."""
        if placement not in PLACEMENTS:
            raise UserError(f"placement is {placement!r}; write one of {', '.join(PLACEMENTS)}")
        return self._with(place(self.view, placement, torch.device(device)))

    def fold(self) -> Teacher:
        """The same function with the norms' weights and LayerScale folded into the linears, as an RMSNorm
        student needs it, here and wherever the student is compared; this one is unchanged."""
        if self.folded:
            return self
        folded = self._with(fold(self.view))
        folded.folded = True
        before = dict(named_tensors(self.view))
        made = {place for place, tensor in named_tensors(folded.view) if before.get(place) is not tensor}
        folded._changed = self._changed | made
        return folded

    def _taking_the_place_of(self, other: Teacher) -> Teacher:
        """Another teacher with the view of this one."""
        found = other._with(self.view)
        found.folded, found._changed = self.folded, self._changed
        return found

    def _with(self, view: View) -> Teacher:
        other = copy.copy(self)
        other.view = view
        return other

    @torch.no_grad()
    def __call__(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        captures: Captures | None = None,
        observe: Callable[[str, int, str, Tensor], None] | None = None,
    ) -> Output:
        """What it makes of a batch's inputs; of a tensor, where it reads images alone."""
        if isinstance(inputs, Tensor):
            inputs = {"image": inputs}
        self._check(inputs)
        output = self.view.run(inputs, captures, observe)
        if output.logits is not None:  # made when they are asked for, without gradients then too
            output.logits = Logits(output.logits.hidden, torch.no_grad()(output.logits.head))
        return output

    def generate(self, inputs: Mapping[str, Tensor], limit: int) -> Tensor:
        """The likeliest words after `text` (B, L), whose padding lies before it: (B, at most limit). Raises
        UserError for a teacher that does not write."""
        if self.writer is None:
            raise UserError(f"teacher {self.source} cannot generate; this evaluation needs it")
        self._check(inputs)
        held = {place: t for place, t in named_tensors(self.view) if place not in self._changed}
        return self.writer(inputs, limit, held)

    @torch.no_grad()
    def walk(self, batches: Sequence[Mapping[str, Tensor]], observe: Walker) -> Iterator[tuple[str, int]]:
        """Several batches' inputs through one sublayer after the other, see `View.walk`."""
        for inputs in batches:
            self._check(inputs)
        yield from self.view.walk(batches, observe)

    def answer(self, batch: Batch, captures: Captures | None = None) -> Output:
        """What a student learns from it at a training batch: its output, made now or read from a store."""
        return self(batch.inputs, captures)

    def check_reads(self, loss: str, captures: Captures) -> None:
        """Raises UserError where a loss reads what its answers lack. One that is run lacks nothing."""

    def _check(self, inputs: Mapping[str, Tensor]) -> None:
        reads = self.view.reads
        known = [name for name in inputs if name in reads or (name == "frames" and "image" in reads)]
        if not known:
            raise UserError(
                f"teacher {self.source} reads {', '.join(sorted(reads))}; the batch has "
                f"{', '.join(inputs) or 'nothing'}"
            )
        device = inputs[known[0]].device
        if device != self.device:  # it follows its inputs: no module moves it along
            self.view = self.view.to(device)


def refuse(what: str, why: str, **values: Any) -> Inexpressible:
    """The error for a part that the canonical view cannot express: refused by name, never approximated."""
    shown = "".join(f" ({key}={value})" for key, value in values.items())
    return Inexpressible(f"teacher {what}{shown} cannot be expressed: {why}")
