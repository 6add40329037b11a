"""KL divergence from the teacher's softened distribution (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transmamba_kernels import softmax_kl

from ..config.registry import LOSSES
from ..core.batch import Batch, asked_item, looked_at
from ..core.output import Logits, Term, wide
from ..distillation.signals import Geometry, Loss, Signals, check_weight
from ..errors import UserError
from .chunked import CHUNK, chunk_problems, chunked


@LOSSES.register("kl")
@dataclass(frozen=True, kw_only=True)
class KL:
    """T² KL(teacher ‖ student) in nats a sample, or a token that has a next one, at temperature T.

    weight: factor of the loss in the stage's sum
    temperature: T, by which both logits are divided
    chunk: of language models, tokens whose logits exist at a time: fewer take less memory
    """

    weight: float = 1.0
    temperature: float = 2.0
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        cold = [f"temperature is {self.temperature}; write a number above 0"] if self.temperature <= 0 else []
        check_weight(self.weight, also=[*cold, *chunk_problems(self.chunk)])

    def build(self, geometry: Geometry | None = None) -> KLLoss:
        """Raises UserError where teacher and student tell different numbers of classes apart, or none; a
        student that does not say how many is taken at its logits."""
        if geometry is not None and not geometry.teacher_classes and not geometry.student_classes:
            instead = "teacher_prediction" if "points" in geometry.streams else "embedding_cosine or affinity"
            raise UserError(
                "loss kl compares classes or words, but the teacher tells none apart, nor the student; write "
                f"{instead}, or give the teacher a head"
            )
        if geometry is not None and not geometry.same_classes:
            raise UserError(
                f"loss kl compares classes, but the teacher has {geometry.teacher_classes or 0} and the "
                f"student {geometry.student_classes or 0}; fine-tune the teacher's head first, or drop kl"
            )
        return KLLoss(self)


class KLLoss(Loss):
    reads_logits = True

    def __init__(self, config: KL) -> None:
        super().__init__(config.weight)
        self.temperature, self.chunk = config.temperature, config.chunk

    def item(self, batch: Batch) -> str:
        return asked_item(batch) if "tokens" in batch.targets else "samples"

    def forward(self, signals: Signals) -> Term:
        student, teacher = signals.student.logits, signals.taught.logits
        assert student is not None and teacher is not None, "an end-to-end pass has logits"
        if "tokens" in signals.batch.targets:
            loss = self._of_words(student, teacher, *looked_at(signals.batch))
        else:
            loss = self._divergence(student(), teacher())
        return Term(loss * self.temperature**2)

    def _of_words(self, student: Logits, teacher: Logits, tokens: Tensor, real: Tensor | None) -> Tensor:
        """Over these of the B * L tokens, where `real` is not False. Raises UserError for vocabularies of
        different sizes."""
        taught = teacher.hidden.flatten(0, -2)[tokens]

        def value(made: Tensor, part: slice) -> Tensor:
            with torch.no_grad():
                wanted = teacher.head(taught[part])
            if made.shape[-1] != wanted.shape[-1]:
                raise UserError(
                    f"loss kl compares words, but the teacher has {wanted.shape[-1]:,} and the student "
                    f"{made.shape[-1]:,}; write a student with its teacher's tokenizer"
                )
            nats = softmax_kl(made, wanted, self.temperature)
            return (nats if real is None else torch.where(real[part], nats, 0)).sum()

        return chunked(student, tokens, self.chunk, value)

    def _divergence(self, made: Tensor, wanted: Tensor) -> Tensor:
        return F.kl_div(self._soft(made), self._soft(wanted), reduction="sum", log_target=True)

    def _soft(self, logits: Tensor) -> Tensor:
        return F.log_softmax(wide(logits) / self.temperature, dim=-1)
