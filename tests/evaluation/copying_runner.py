"""Language models whose logits are made from all that stands before, one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from transmamba.core.batch import Batch
from transmamba.core.output import Logits


class Copies:
    """After the last `reach` tokens it expects what followed them when they stood there before (the last time
    but now), else token 0: induction, by looking."""

    def __init__(self, words: int, reach: int, forgets: int | None = None) -> None:
        self.words, self.reach, self.forgets = words, reach, forgets
        self.rows_read = 0

    def next_token(self, ids: list[int]) -> int:
        """forgets: what stands further back it has forgotten"""
        now = ids[-self.reach :]
        oldest = 0 if self.forgets is None else max(0, len(ids) - self.forgets)
        for start in range(len(ids) - self.reach - 1, oldest - 1, -1):
            if ids[start : start + self.reach] == now:
                return ids[start + self.reach]
        return 0

    def logits(self, batch: Batch) -> Logits:
        text, mask = batch.inputs["text"], batch.inputs["text_mask"]
        said = torch.zeros(*text.shape, dtype=torch.int64)
        for row in range(len(text)):
            ids = text[row][mask[row]].tolist()
            self.rows_read += 1
            for place in range(len(ids)):
                said[row, place] = self.next_token(ids[: place + 1])
        return Logits(said[..., None].double(), self._head)

    def _head(self, hidden: Tensor) -> Tensor:
        return 5.0 * torch.nn.functional.one_hot(hidden[..., 0].long(), self.words).double()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def generate(self, batch: Batch, limit: int) -> Tensor:
        raise NotImplementedError
