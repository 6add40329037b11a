"""Runners that embed by a table, and splits of pictures with captions, for the tests of evaluators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.core.batch import Batch
from transmamba.core.output import Logits
from transmamba.core.task import Evaluator, Pass
from transmamba.data.stream import in_order


class Embeds:
    """Embeds picture n as row n of `image` and a text whose first token is m as row m of `text`."""

    def __init__(self, image: Tensor | None = None, text: Tensor | None = None) -> None:
        self.tables = {"image": image, "text": text}
        self.passes: list[tuple[int, int]] = []  # pictures, texts

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        texts = batch.inputs.get("text", torch.zeros(0, 1, dtype=torch.int64))
        self.passes.append((len(batch), len(texts)))
        rows = {"image": batch.index if "image" in batch.inputs else None, "text": texts[:, 0]}
        if "text" not in batch.inputs:
            rows["text"] = None
        return {
            tower: table[rows[tower]]
            for tower, table in self.tables.items()
            if table is not None and rows[tower] is not None
        }

    def logits(self, batch: Batch) -> Logits:
        raise NotImplementedError

    def generate(self, batch: Batch, limit: int) -> Tensor:
        raise NotImplementedError


def unit(seed: int, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pair_batches(owners: Tensor, pictures: int, shuffled: int | None = None) -> Callable[[Pass], Any]:
    """Caption m is text m and belongs to picture owners[m]; each rank's share as tasks deal it out."""
    order = np.arange(pictures)
    if shuffled is not None:
        order = np.random.default_rng(shuffled).permutation(pictures)

    def batches(passing: Pass) -> Iterator[Batch]:
        for part in in_order(order, passing.batch_size, passing.rank, passing.world):
            yield pair_batch(owners, part)

    return batches


def pair_batch(owners: Tensor, part: Any) -> Batch:
    said = [torch.nonzero(owners == int(number))[:, 0] for number in part]
    captions = torch.cat(said)
    inputs = {"image": torch.zeros(len(part), 1, 1, 1)}
    targets = {"group": owners[captions]}
    if len(captions):
        mask = torch.ones(len(captions), 1, dtype=torch.bool)
        inputs |= {"text": captions[:, None], "text_mask": mask}
    counts = {"samples": len(part), "pairs": len(captions)}
    return Batch(inputs, targets, torch.as_tensor(np.array(part)), counts)


def class_batches(labels: Tensor, numbers: Tensor | None = None) -> Callable[[Pass], Any]:
    """Items of classes; picture n is the n-th row of the table, or the one that `numbers` says."""
    rows = torch.arange(len(labels)) if numbers is None else numbers

    def batches(passing: Pass) -> Iterator[Batch]:
        for part in in_order(np.arange(len(labels)), passing.batch_size, passing.rank, passing.world):
            inputs = {"image": torch.zeros(len(part), 1, 1, 1)}
            yield Batch(inputs, {"classes": labels[part]}, rows[part], {"samples": len(part)})

    return batches


def filled(indices: Any) -> Any:
    """Pictures (N, 2, 2, 3), each filled with its number."""
    numbers = np.asarray(indices, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(numbers, (len(numbers), 2, 2, 3))


def tallies_of(evaluator: Evaluator, runners: dict[str, Any], world: int, batch_size: int = 4) -> Sequence:
    """What `world` processes gather."""
    tallies = []
    for rank in range(world):
        tallies.append(evaluator.start())
        for batch in evaluator.batches(Pass(batch_size=batch_size, rank=rank, world=world)):
            evaluator.add(tallies[-1], runners, batch)
    return tallies
