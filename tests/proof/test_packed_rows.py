"""Feature and mixer losses over packed rows of text: every real token counts once, whatever stands beside
it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import toys
from torch import Tensor

from transmamba.core.batch import Batch
from transmamba.core.output import Capture, Context
from transmamba.distillation.distiller import Distiller
from transmamba.views.sublayers import map_tensors

REAL, BORDERS = 6, (4, 2, 3)  # tokens of a row, and where its second document begins


@pytest.fixture(autouse=True)
def parts() -> Iterator[None]:
    with toys.registered():
        yield


@pytest.fixture
def packed() -> Batch:
    """Rows full of real tokens, two documents in each, without a mask."""
    text = torch.randint(toys.WORDS, (3, REAL), generator=torch.Generator().manual_seed(4))
    segment = (torch.arange(REAL) >= torch.tensor(BORDERS)[:, None]).int()
    counts = {"samples": 3, "tokens": text.numel()}
    return Batch({"text": text, "text_segment": segment}, {}, torch.arange(3), counts)


def distiller_of(loss: str) -> Distiller:
    """In float64."""
    torch.manual_seed(0)
    teacher = toys.ToyLanguageModel().build()
    teacher.view = map_tensors(teacher.view, lambda x: x.double() if x.is_floating_point() else x)
    student = toys.ToyCausal().build(None)  # type: ignore[arg-type]
    return Distiller(student.double(), teacher, (loss,)).double()


def documents(batch: Batch) -> list[tuple[int, slice]]:
    return [
        (row, part) for row, border in enumerate(BORDERS) for part in (slice(0, border), slice(border, REAL))
    ]


def alone(batch: Batch, row: int, part: slice) -> Batch:
    text = batch.inputs["text"][row : row + 1, part]
    return Batch({"text": text}, {}, torch.zeros(1), {"samples": 1, "tokens": text.shape[1]})


def padded(batch: Batch, with_: int) -> Batch:
    """The same rows with three tokens of padding, which any document may claim."""
    text, segment = (batch.inputs[name] for name in ("text", "text_segment"))
    shape = (len(text), 3)
    inputs = {
        "text": torch.cat([text, text.new_full(shape, with_)], dim=1),
        "text_segment": torch.cat([segment, segment.new_full(shape, 1)], dim=1),
        "text_mask": torch.cat([torch.ones_like(text).bool(), torch.zeros(shape).bool()], dim=1),
    }
    return replace(batch, inputs=inputs)


def test_features_are_those_of_the_documents(packed: Batch) -> None:
    distiller = distiller_of("feature")
    apart = [distiller(alone(packed, *document))["feature"].sum for document in documents(packed)]
    together = distiller(packed)["feature"]
    torch.testing.assert_close(together.sum, torch.stack(apart).sum(), rtol=1e-10, atol=1e-10)
    assert distiller.items(packed) == {"feature": "tokens"}


def errors(distiller: Distiller, batch: Batch) -> tuple[Tensor, Tensor]:
    """(layers,) |z - t|² and |t|² of the mixers over all tokens of one document alone."""
    (loss,) = distiller.losses.values()
    assert distiller.teacher is not None
    taught = distiller.teacher(batch.inputs, loss.teacher_captures())  # type: ignore[operator]
    aligner, tower = distiller.aligners["text"], distiller.student.towers["text"]  # type: ignore[union-attr,index]
    found = []
    for k, s in loss.sources.items():  # type: ignore[operator,union-attr]
        given = aligner.to_student(taught.stream.mixers[s]["input"])  # type: ignore[operator]
        made, _ = tower.mixer(k, given, Context(), Capture())
        wanted = taught.stream.mixers[s]["output"]
        z = aligner.project(k, made)  # type: ignore[operator]
        found.append(torch.stack([(z - wanted).square().sum(), wanted.square().sum()]))
    first, second = torch.stack(found, dim=1)
    return first, second


def test_mixers_see_each_document_alone_and_count_all_its_tokens(packed: Batch) -> None:
    distiller = distiller_of("mixer")
    expected = torch.zeros((), dtype=torch.float64)
    for row in range(len(BORDERS)):
        mine = [errors(distiller, alone(packed, *at)) for at in documents(packed) if at[0] == row]
        wrong, size = (torch.stack(each).sum(0) for each in zip(*mine, strict=True))
        expected = expected + (wrong / size).mean() * REAL
    term = distiller(packed)["mixer"]
    # the loss is in float32
    torch.testing.assert_close(term.sum.double(), expected, rtol=1e-5, atol=1e-5)
    assert term.parts is not None and (term.parts.abs() <= packed.counts["tokens"]).all()
    assert distiller.items(packed) == {"mixer": "tokens"}


@pytest.mark.parametrize("loss", ["feature", "mixer"])
def test_padding_changes_nothing(loss: str, packed: Batch) -> None:
    distiller = distiller_of(loss)
    wanted = distiller(packed)[loss]
    for token in (0, 5):
        found = distiller(padded(packed, token))[loss]
        torch.testing.assert_close(found.sum, wanted.sum, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.parts, wanted.parts, rtol=1e-6, atol=1e-6)
