"""A batch keeps its names wherever its tensors go."""

from __future__ import annotations

import torch

from transmamba.core.batch import Batch, image_batch, rows_of


def captions() -> Batch:
    inputs = {"image": torch.randn(2, 3, 4, 4), "text": torch.arange(6).view(2, 3)}
    return Batch(inputs, {"group": torch.tensor([5, 6])}, torch.tensor([8, 9]), {"samples": 2, "tokens": 5})


def test_map_reaches_every_tensor() -> None:
    batch = captions()
    moved = batch.map(lambda tensor: tensor[:1])
    assert [tensor.shape[0] for tensor in moved.tensors().values()] == [1] * 4
    assert moved.counts == batch.counts and len(moved) == 1 and len(batch) == 2
    assert {tensor.device.type for tensor in batch.to("meta").tensors().values()} == {"meta"}


def test_tensors_by_name_and_back() -> None:
    batch = captions()
    named = batch.tensors()
    assert list(named) == ["input/image", "input/text", "target/group", "index"]
    other = batch.with_tensors({name: tensor + 1 for name, tensor in named.items()})
    assert other.inputs.keys() == batch.inputs.keys() and other.counts == batch.counts
    assert torch.equal(other.inputs["text"], batch.inputs["text"] + 1)
    assert torch.equal(other.targets["group"], batch.targets["group"] + 1)
    assert torch.equal(other.index, batch.index + 1)


def test_a_batch_of_pictures() -> None:
    batch = image_batch(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 2]))
    assert batch.counts == {"samples": 3} and batch.index.tolist() == [0, 1, 2]
    assert image_batch(torch.zeros(1, 1, 2, 2), torch.zeros(1), torch.tensor([7])).index.tolist() == [7]


def test_rows_keep_their_own_pictures() -> None:
    inputs = {
        "text": torch.arange(8).reshape(4, 2),
        "image": torch.arange(5.0),
        "image_row": torch.tensor([0, 2, 2, 2, 3]),
    }
    found = rows_of(inputs, slice(2, 4))
    assert found["text"].tolist() == [[4, 5], [6, 7]] and found["image"].tolist() == [1, 2, 3, 4]
    assert found["image_row"].tolist() == [0, 0, 0, 1]
    assert rows_of(inputs, slice(1, 2)).keys() == {"text"}, "no pictures are no input"
    whole = rows_of(inputs, slice(99))
    assert all(torch.equal(whole[name], inputs[name]) for name in inputs)
    plain = {"image": torch.arange(3), "text": torch.arange(3)}
    assert rows_of(plain, slice(2))["image"].tolist() == [0, 1]
