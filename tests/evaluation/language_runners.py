"""Language models that say what a table says, and batches of text, for the tests of evaluators."""

from __future__ import annotations

import torch
from torch import Tensor

from transmamba.core.batch import Batch
from transmamba.core.output import Logits

WORDS = 11


class Says:
    """Next to word w it finds word v as likely as `table[w, v]` says, whatever stood before."""

    def __init__(self, seed: int, words: int = WORDS, scale: float = 1.5) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.table = scale * torch.randn(words, words, generator=draw)
        self.calls: list[int] = []

    def logits(self, batch: Batch) -> Logits:
        return Logits(self.table[batch.inputs["text"]], self._head)

    def _head(self, hidden: Tensor) -> Tensor:
        self.calls.append(len(hidden))
        return hidden

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def generate(self, batch: Batch, limit: int) -> Tensor:
        raise NotImplementedError


def text_batch(index: Tensor, length: int, *, packed: bool) -> Batch:
    """Row n is drawn by n: two documents, or one with padding after it."""
    draws = [torch.Generator().manual_seed(int(n)) for n in index]
    text = torch.stack([torch.randint(WORDS, (length,), generator=draw) for draw in draws])
    at = torch.arange(length)
    border = torch.tensor([2 + 37 * int(n) % (length - 3) for n in index])[:, None]
    targets = text.roll(-1, 1)
    if packed:
        inputs = {"text": text, "text_segment": (at >= border).int()}
        targets = targets.where((at != border - 1) & (at != length - 1), -100)
    else:
        inputs = {"text": text, "text_mask": at < border}
        targets = targets.where(at < border - 1, -100)
    counts = {"samples": len(index), "tokens": int((targets >= 0).sum())}
    return Batch(inputs, {"tokens": targets}, index, counts)
