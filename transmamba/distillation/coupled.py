"""Losses that compare every item with all others of an optimizer step, however the step is divided.

A step is gone through twice. First without gradients: every micro-batch's embeddings, gathered over ranks,
are the bank, from which such a loss gives its value and its gradients once. Then the ordinary pass adds, for
each micro-batch, the inner product of its embeddings with their gradients, whose derivative is the loss's
own. The seeds of a step make both passes draw alike. (Gao et al., arXiv 2101.06983, for the two passes.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.bank import Bank, bank_of
from ..core.output import Term

if TYPE_CHECKING:
    from .signals import Signals


@dataclass(frozen=True)
class Coupling:
    """A coupled loss of the whole step as one micro-batch sees it.

    gradients: of the loss by each of this micro-batch's embeddings (B, E)
    scalars:   its gradients by the numbers, on one micro-batch of one rank alone, else empty
    value:     this micro-batch's share of the loss, so that shares add up to it
    """

    gradients: Bank
    scalars: Bank
    value: Tensor

    def term(self, signals: Signals) -> Term:
        """A term of that value whose gradients are the whole step's."""
        student = signals.student
        inner = [(student.embeddings[name] * grad).sum() for name, grad in self.gradients.items()]
        # a number that has its gradient elsewhere takes part with 0, so that every rank has the same ones
        inner += [
            (number * self.scalars[name]).sum() if name in self.scalars else number.sum() * 0
            for name, number in student.scalars.items()
        ]
        total = torch.stack(inner).sum()
        return Term(total - total.detach() + self.value)


def couple(
    loss: Any, banks: Sequence[Bank], scalars: Bank, mine: Sequence[int], parts: int, first: bool
) -> list[Coupling]:
    """The couplings of this rank's micro-batches.

    banks:   embeddings of every micro-batch of every rank, in one order that all ranks share
    mine:    which of them are this rank's, in the order of its micro-batches
    parts:   how many shares the loss's value has: micro-batches of all ranks
    first:   whether this rank gives the gradients of the numbers
    """
    with torch.enable_grad():
        whole = {name: _leaf(name, torch.cat([bank[name] for bank in banks])) for name in banks[0]}
        numbers = {name: _leaf(name, number.clone()) for name, number in scalars.items()}
        value = loss.value(whole, numbers)
        wanted = {name: x for name, x in {**whole, **numbers}.items() if x.requires_grad}
        found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(x) if grad is None else grad
        for (name, x), grad in zip(wanted.items(), found, strict=True)
    }
    sizes = [len(next(iter(bank.values()))) for bank in banks]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        Coupling(
            {n: gradients[n][starts[i] : starts[i] + sizes[i]] for n in whole if n in gradients},
            {n: gradients[n] for n in numbers if n in gradients} if first and m == 0 else {},
            value.detach() / parts,
        )
        for m, i in enumerate(mine)
    ]


def _leaf(name: str, x: Tensor) -> Tensor:
    """Where a gradient ends: one of the student's embeddings or numbers; all else is a constant."""
    return x.detach().requires_grad_(x.is_floating_point() and not name.startswith("teacher/"))


def embeddings(signals: Signals) -> Mapping[str, Tensor]:
    """What a coupled loss reads of one batch."""
    return bank_of(signals.student, signals.teacher, signals.batch)[0]
