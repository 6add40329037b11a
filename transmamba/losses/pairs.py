"""What losses over pairs of image and text share: what they read, and the similarities between all rows.

Shapes: N pairs (of one batch, or of all micro-batches and ranks of a step), E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core.bank import bank_of
from ..core.batch import Batch
from ..core.output import Term, wide
from ..distillation.signals import Loss, Signals
from ..errors import UserError


class PairLoss(Loss):
    """A coupled loss over pairs: `value` of everything that there is, a sum over pairs.

    A step is counted in `pairs`, in `samples` where the batch counts no pairs.
    """

    needs_teacher = False
    coupled = True
    embeds = True
    numbers: tuple[str, ...] = ("scale",)

    def __init__(self, name: str, weight: float) -> None:
        super().__init__(weight)
        self.name = name

    @property
    def reads(self) -> tuple[str, ...]:
        return ("image", "text")

    def item(self, batch: Batch) -> str:
        return "pairs" if "pairs" in batch.counts else "samples"

    def value(self, bank: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> Tensor:
        """The loss summed over pairs.

        bank:    embeddings (N, E) by tower, the teacher's as `teacher/image`, and perhaps `group` (N,)
        numbers: `scale`, `bias`, the teacher's as `teacher/scale`
        """
        raise NotImplementedError

    def forward(self, signals: Signals) -> Term:
        """Of this batch alone."""
        return Term(self.value(*bank_of(signals.student, signals.teacher, signals.batch)))

    def pairs(self, bank: Mapping[str, Tensor], who: str = "") -> tuple[Tensor, Tensor]:
        """The embeddings (N, E) of images and texts, of the teacher where `who` is `teacher/`.

        Raises UserError where one is missing, or where they make no pairs.
        """
        image, text = (embedding(self.name, bank, tower, who) for tower in ("image", "text"))
        if len(image) != len(text):
            raise UserError(
                f"loss {self.name} needs one text an image, the batch has {len(image)} images and "
                f"{len(text)} texts; repeat an image for each of its captions, with targets `group`"
            )
        return image, text

    def number(self, numbers: Mapping[str, Tensor], name: str, who: str = "") -> Tensor:
        """A learnt number, of the teacher where `who` is `teacher/`. Raises UserError where it is missing."""
        if f"{who}{name}" not in numbers:
            raise UserError(
                f"loss {self.name} reads the number {name!r} of the {model_of(who)}, which has "
                f"{_listed(numbers, who)}; give its Output scalars[{name!r}], or take another loss"
            )
        return wide(numbers[f"{who}{name}"])


def embedding(name: str, bank: Mapping[str, Tensor], tower: str, who: str = "") -> Tensor:
    """The embeddings (N, E) of a tower, at least in float32. Raises UserError where they are missing."""
    if f"{who}{tower}" not in bank:
        raise UserError(
            f"loss {name} reads the {tower} embedding of the {model_of(who)}, which gives "
            f"{_listed(bank, who)}; give a model and a batch with {tower}, or drop the loss"
        )
    return wide(bank[f"{who}{tower}"])


def model_of(who: str) -> str:
    """`teacher` for `teacher/`, `student` for nothing."""
    return who.rstrip("/") or "student"


def _listed(there: Mapping[str, Tensor], who: str) -> str:
    """The names that are there of one of the two models."""
    mine = [name.removeprefix(who) for name in there if name.startswith(who) and name != "group"]
    return ", ".join(sorted(name for name in mine if "/" not in name)) or "none"


def similarities(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """scale * left rightᵀ, (n, E), (N, E) -> (n, N), in their own type whatever autocast would make of it:
    at a scale of 100, bfloat16 tells no near pairs apart."""
    with torch.autocast(left.device.type, enabled=False):
        return scale * (left @ right.mT)


def same_image(bank: Mapping[str, Tensor], rows: Tensor) -> Tensor | None:
    """Which other pairs have the image of each of these rows: (n,) -> (n, N) bool, False at the pair itself;
    None where the batch does not say.

    Its captions describe one image, so none of them is a wrong answer for it. [proposal] They are left out,
    rather than made right answers too: each pair then has one positive, as without groups, and the loss does
    not ask that two captions of an image have the same embedding. open_clip has no such thing: it counts them
    as wrong.
    """
    group = bank.get("group")
    if group is None:
        return None
    other = rows[:, None] != torch.arange(len(group), device=rows.device)
    return (group[rows][:, None] == group) & other
