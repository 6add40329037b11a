"""What a data loader hands to the trainer, and the trainer to teacher, student and losses, under one name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .recording import recording


@dataclass(frozen=True)
class Batch:
    """One micro-batch: what goes in, what should come out, how much of it there is.

    inputs:  image (N, C, H, W) float32, normalised for the model, with image_row (N,) int64, whose each
        picture is, where a row may have none or several; frames (B, T, C, H, W) of videos with frames_mask
        (B, T) bool, True where a frame is real; text (B, L) int64 with text_mask (B, L) bool or text_segment
        (B, L) int32, and prompt_mask (B, L) bool, the words that may be read before an answer is known;
        points (B, L, d); and whatever else a tower takes. An input that is absent: its tower is not run
    targets: classes (B,) int64 or (B, K) float32 after mixup; tokens (B, L), already shifted, -100 where
        nothing is asked; values (B, L, O) with asked (B, L, O) bool; nothing at all
    index:   (B,) int64, each row's number in its split's source
    counts:  items by kind, counted on the CPU by whoever collates: `samples` always, and whatever else losses
        are divided by (tokens; words, which are those that stand for no picture; answers, pairs)
    """

    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    index: Tensor
    counts: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.index)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `function` applied to each tensor."""
        return Batch(
            {name: function(tensor) for name, tensor in self.inputs.items()},
            {name: function(tensor) for name, tensor in self.targets.items()},
            function(self.index),
            self.counts,
        )

    def first(self, count: int) -> Batch:
        """The first `count` rows; of pictures those that stand in them. The counts stay."""
        rows = self.map(lambda tensor: tensor[:count])
        return replace(rows, inputs=rows_of(self.inputs, slice(count)))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self.map(lambda tensor: tensor.pin_memory())

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a name of its own, in a fixed order: `input/image`, `target/classes`, `index`."""
        named = {f"input/{name}": self.inputs[name] for name in sorted(self.inputs)}
        named |= {f"target/{name}": self.targets[name] for name in sorted(self.targets)}
        return {**named, "index": self.index}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Batch:
        """The same batch holding these instead: the inverse of `tensors`."""
        return Batch(
            {name: tensors[f"input/{name}"] for name in self.inputs},
            {name: tensors[f"target/{name}"] for name in self.targets},
            tensors["index"],
            self.counts,
        )


def rows_of(inputs: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """The inputs of these rows, one after the other; of pictures that lie in rows (`image_row`), theirs, and
    no `image` where they have none."""
    of = inputs.get("image_row")
    if of is None:
        return {name: tensor[rows] for name, tensor in inputs.items()}
    count = max(len(tensor) for name, tensor in inputs.items() if name not in ("image", "image_row"))
    start, stop, _ = rows.indices(count)
    there = (of >= start) & (of < stop)
    found = {name: tensor[rows] for name, tensor in inputs.items() if name not in ("image", "image_row")}
    if bool(there.any()):
        found |= {"image": inputs["image"][there], "image_row": of[there] - start}
    return found


def image_batch(images: Tensor, classes: Tensor, index: Tensor | None = None) -> Batch:
    """A batch of an image classifier: images (B, C, H, W), classes (B,) or (B, K)."""
    index = torch.arange(len(images)) if index is None else index
    return Batch({"image": images}, {"classes": classes}, index, {"samples": len(images)})


# the target of a token of which nothing is asked
IGNORED = -100


def asked_item(batch: Batch) -> str:
    """What the tokens with a target are counted as: the answers, where a batch counts them apart from its
    tokens."""
    return "answers" if "answers" in batch.counts else "tokens"


def asked(batch: Batch) -> Tensor:
    """(N,) int64: which of the B * L tokens have a target: no padding, and none across a document's end."""
    found = _wanted(batch).nonzero()[:, 0]
    item = asked_item(batch)
    counted = batch.counts.get(item, len(found))
    assert len(found) == counted, f"{len(found)} targets, but the batch counts {counted} {item}"
    return found


def looked_at(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """(tokens (N,), as `asked` says them, None); of a step that is recorded, whose shapes may not follow from
    numbers, all B * L and which of them have a target (B * L,), bool."""
    if not recording():
        return asked(batch), None
    wanted = _wanted(batch)
    return torch.arange(len(wanted), device=wanted.device), wanted


def _wanted(batch: Batch) -> Tensor:
    """(B * L,) bool"""
    targets, mask = batch.targets["tokens"], batch.inputs.get("text_mask")
    wanted = targets != IGNORED
    return (wanted if mask is None else wanted & mask).flatten()
