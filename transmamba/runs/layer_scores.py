"""How far a student is from its teacher with attention in these layers or in those, on text and in recall.

Recall is read off the same texts: half a block's tokens are followed by themselves, and the words of the
second time are those that a model with attention copies (induction). Shapes: B rows, L tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.batch import IGNORED, Batch, asked
from ..errors import UserError
from ..evaluation.run import ModelRunner
from ..evaluation.words import divergence, likelihoods, log_probabilities
from ..students.hybrid_lm.swap import Swap
from .layer_order import Score

Pairs = list[tuple[Batch, int]]
Watch = Callable[[Pairs, str], Iterable[tuple[Batch, int]]]
# tokens of a span at least
_LEAST = 4


def repeated(batch: Batch) -> Batch:
    """Each row's first real tokens, half a block of them at most, twice: inputs `text` (B', 2 M) and, where
    rows differ in length, `text_mask`; targets `tokens` of the second time, but for its first word, which
    nothing announces. Rows of too few tokens are left out."""
    text, mask = batch.inputs["text"], batch.inputs.get("text_mask")
    rows = [
        row if mask is None else row[real] for row, real in zip(text, _each(mask, len(text)), strict=True)
    ]
    spans = [row[: text.shape[1] // 2] for row in rows]
    spans = [span for span in spans if len(span) >= _LEAST]
    longest = 2 * max(map(len, spans), default=0)
    made, real = text.new_zeros(len(spans), longest), torch.zeros(len(spans), longest, dtype=torch.bool)
    targets = torch.full_like(made, IGNORED)
    for n, span in enumerate(spans):
        m = len(span)
        made[n, : 2 * m], real[n, : 2 * m] = span.repeat(2), True
        targets[n, m : 2 * m - 1] = span[1:]
    inputs = {"text": made} if real.all() else {"text": made, "text_mask": real}
    counts = {"samples": len(spans), "tokens": int(real.sum()), "answers": int((targets != IGNORED).sum())}
    return Batch(inputs, {"tokens": targets}, torch.arange(len(spans)), counts)


def _each(mask: Tensor | None, rows: int) -> Sequence[Any]:
    return [None] * rows if mask is None else list(mask)


class Scores:
    """Scores of sets of layers; call it with several, for each batch the teacher reads once for all of them.

    texts:    batches on the CPU, as the task makes them, of texts or of questions
    recall:   whether repeated spans are read as well; without, their scores are 0
    what:     how that is called which is predicted in `texts`
    autocast: makes the context that both compute in
    watch:    shows a pass to the user: (batches and sets, title) to the same

    Raises UserError where no row is long enough to be repeated, and for a model whose logits are not finite.
    """

    def __init__(
        self,
        swap: Swap,
        teacher: Any,
        texts: Sequence[Batch],
        *,
        recall: bool,
        what: str = "text",
        device: torch.device,
        autocast: Callable[[], Any] = contextlib.nullcontext,
        watch: Watch = lambda pairs, title: pairs,
    ) -> None:
        self.swap, self.texts, self.watch, self.what = swap, list(texts), watch, what
        self.device, self.autocast = device, autocast
        self.spans = [again for batch in texts if len(again := repeated(batch))] if recall else []
        if recall and not self.spans:
            raise UserError(
                f"no row of these texts has {2 * _LEAST} tokens to repeat; write a larger task.block, or "
                "recall weight 0"
            )
        self._student = ModelRunner(swap.model, device, autocast)
        self._teacher = ModelRunner(teacher, device, autocast, kind="teacher")

    @property
    def words(self) -> dict[str, int]:
        """How many are predicted: of what is read, by its name, and `recall`, of spans that come again."""
        return {
            name: sum(len(asked(batch)) for batch in batches)
            for name, batches in ((self.what, self.texts), ("recall", self.spans))
        }

    def __call__(self, sets: Sequence[tuple[int, ...]]) -> list[Score]:
        """Of students with attention in these of their own layers."""
        sizes = {len(layers) for layers in sets}
        title = f"attention in {max(sizes)} of {len(self.swap.layers)} layers"
        with self._student, self._teacher:
            text = self._means(self.texts, sets, f"{title}, {self.what}")
            spans = self._means(self.spans, sets, f"{title}, recall")
        return [
            Score(kl=kl, recall_kl=recall, recalled=100 * right)
            for (kl, _), (recall, right) in zip(text.tolist(), spans.tolist(), strict=True)
        ]

    def _means(self, batches: Sequence[Batch], sets: Sequence[tuple[int, ...]], title: str) -> Tensor:
        """(sets, 2) float64: KL to the teacher, and the share of words that are likeliest."""
        sums, count = torch.zeros(len(sets), 2, dtype=torch.float64), 0
        if not batches:
            return sums
        for batch, n in self.watch([(batch, n) for batch in batches for n in range(len(sets))], title):
            if n == 0:
                tokens, here = asked(batch), batch.to(self.device)
                wanted = batch.targets["tokens"].flatten()[tokens]
                taught, opened = self._teacher.logits(here), self._opened(here)
                count += len(tokens)
            with self.swap.keeping(sets[n]):
                made = self._student.logits(opened)
            said = {"teacher": taught, "student": made}
            for part, logs in log_probabilities(said, tokens, batch.targets["tokens"].numel()):
                student = logs["student"]
                sums[n, 0] += divergence(student, logs["teacher"]).double().sum().cpu()
                sums[n, 1] += likelihoods(student, wanted[part])[1].sum().cpu()
            self._refuse_trouble()
        return sums / max(count, 1)

    def _opened(self, batch: Batch) -> Batch:
        """With what is made of it before any of the layers, a picture's features say: once for all sets."""
        with torch.no_grad(), self.autocast():
            return replace(batch, inputs=self.swap.opened(batch.inputs))

    def _refuse_trouble(self) -> None:
        for name, runner in (("student", self._student), ("teacher", self._teacher)):
            if runner.trouble is not None:
                raise UserError(
                    f"{name}: {runner.trouble}; the weights are damaged, or the precision is too low for them"
                )
