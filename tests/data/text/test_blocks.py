"""Blocks against documents that are gone through token by token."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transmamba.core.batch import Batch
from transmamba.data.hashing import permutation
from transmamba.data.text.batches import NOTHING, EvalText, TrainText
from transmamba.data.text.blocks import Blocks, Packed, Padded
from transmamba.data.text.tokenised import ANSWERS, BOUNDS, TOKENS, About, Tokenised


def texts_of(folder: Path, lengths: list[int], answered: bool = False) -> Tokenised:
    """Documents whose tokens are all different, a third of which are answers."""
    folder.mkdir(exist_ok=True)
    total = sum(lengths)
    np.arange(1, total + 1, dtype=np.uint16).tofile(folder / TOKENS)
    np.cumsum([0, *lengths], dtype=np.int64).tofile(folder / BOUNDS)
    if answered:
        (np.random.default_rng(0).random(total) < 0.33).tofile(folder / ANSWERS)
    about = About(total, len(lengths), "uint16", answered, [])
    (folder / "about.json").write_text(json.dumps(vars(about)))
    found = Tokenised.open(folder)
    assert found is not None
    return found


def whole(blocks: Blocks, packed: bool) -> Batch:
    return EvalText(blocks, packed).batch(np.arange(len(blocks)))


def pairs_of(texts: Tokenised, documents: np.ndarray, answers_only: bool) -> Counter[tuple[int, int]]:
    """(token, the next one in its document) of all documents, one by one."""
    found: Counter[tuple[int, int]] = Counter()
    for document in documents:
        start, end = texts.bounds[document], texts.bounds[document + 1]
        for place in range(start, end - 1):
            if not answers_only or (texts.answers is not None and texts.answers[place + 1]):
                found[int(texts.tokens[place]), int(texts.tokens[place + 1])] += 1
    return found


def asked_in(batch: Batch) -> Counter[tuple[int, int]]:
    text, targets = batch.inputs["text"], batch.targets["tokens"]
    return Counter(
        (int(text[row, place]), int(targets[row, place]))
        for row, place in (targets != NOTHING).nonzero().tolist()
    )


LENGTHS = {
    "short": [3, 2, 5, 2, 2, 7, 4, 2, 3, 6, 2],
    "long": [40, 2, 25, 3],
    "whole": [8, 8, 16, 2, 6],
    "tiny": [3, 2],
}


@pytest.mark.parametrize("answers_only", [False, True])
@pytest.mark.parametrize("kind", [Packed, Padded])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("some", [False, True])
def test_every_token_of_every_document_is_asked_once(
    lengths: list[int], kind: Any, answers_only: bool, some: bool, tmp_path: Path
) -> None:
    """And none by a token of another document; what a document holds stands in its order."""
    texts = texts_of(tmp_path, lengths, answered=True)
    documents = np.arange(len(lengths))
    if some and len(lengths) > 2:
        documents = np.delete(documents, [1])
    blocks = kind(texts, documents, 8, answers_only)
    batch = whole(blocks, kind is Packed)
    assert asked_in(batch) == pairs_of(texts, documents, answers_only)
    assert batch.counts["answers"] == int((batch.targets["tokens"] != NOTHING).sum())
    assert batch.inputs["text"].shape == batch.targets["tokens"].shape == (len(blocks), 8)
    assert (batch.inputs["text"].dtype, batch.targets["tokens"].dtype) == (torch.int64, torch.int64)
    real = batch.inputs.get("text_mask", torch.ones(len(blocks), 8, dtype=torch.bool))
    assert batch.counts["tokens"] == int(real.sum()) and batch.counts["samples"] == len(blocks)
    assert (batch.targets["tokens"][~real] == NOTHING).all() and (batch.inputs["text"][real] > 0).all()
    assert bool(real.all()) != blocks.padded or kind is Padded


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_packed_blocks_are_the_documents_one_after_another(lengths: list[int], tmp_path: Path) -> None:
    texts = texts_of(tmp_path, lengths)
    batch = whole(Packed(texts, np.arange(len(lengths)), 8), packed=True)
    text, segment, total = batch.inputs["text"], batch.inputs["text_segment"], sum(lengths)
    document = np.repeat(np.arange(len(lengths)), lengths)
    assert segment.dtype == torch.int32
    for row in range(len(text)):
        start = max(0, min(8 * row, total - 8))
        stop = min(start + 8, total)
        assert text[row, : stop - start].tolist() == texts.tokens[start:stop].tolist()
        mine = document[start:stop]
        assert segment[row, : stop - start].tolist() == (mine - mine[0]).tolist()
        assert (segment[row, stop - start :] == mine[-1] - mine[0] + 1).all(), "padding is apart"
    assert ("text_mask" in batch.inputs) == (total < 8)
    with pytest.raises(IndexError):
        EvalText(Packed(texts, np.arange(len(lengths)), 8), True).batch(np.array([len(text)]))


def test_a_document_a_row(tmp_path: Path) -> None:
    """The last token of a document, which asks nothing, takes no row for itself."""
    texts = texts_of(tmp_path, [2, 9, 10, 17])
    blocks = Padded(texts, np.arange(4), 8)
    batch = whole(blocks, packed=False)
    assert "text_segment" not in batch.inputs
    assert batch.inputs["text_mask"].sum(dim=1).tolist() == [2, 8, 8, 2, 8, 8]
    assert batch.inputs["text"][:, 0].tolist() == [1, 3, 12, 20, 22, 30]
    assert len(EvalText(blocks, False).batch(np.zeros(0, np.int64))) == 0


def test_a_share_is_mixed_in_which_goes_through_all_of_its_own(tmp_path: Path) -> None:
    main = Packed(texts_of(tmp_path / "a", [40]), np.arange(1), 8)
    other = Packed(texts_of(tmp_path / "b", [10] * 6 + [3]), np.arange(7), 8)
    few = Packed(texts_of(tmp_path / "c", [3]), np.arange(1), 8)
    source = TrainText((main, other, few), (5, 3, 2), seed=4, packed=True)
    assert (len(main), len(other), len(few)) == (5, 8, 1)
    drawn = [[source.which(epoch, position) for position in range(10)] for epoch in range(8)]
    for found in drawn:
        assert found[:5] == [(0, number) for number in range(5)] and found[8:] == [(2, 0)] * 2
    taken = [number for found in drawn for part, number in found if part == 1]
    assert [sorted(taken[k : k + 8]) for k in (0, 8, 16)] == [[*range(8)]] * 3
    assert taken[:8] != taken[8:16] and taken[:8] == permutation(8, 4, 3, 1, 0).tolist()
    batch = source.batch(np.array([[1, 0], [1, 6], [1, 9]]))
    assert batch.index.tolist() == [0, 5 + taken[4], 13]
    assert batch.inputs["text_mask"].sum(dim=1).tolist() == [8, 8, 3], "padded, as one of them is"
    wanted = [whole(main, True), whole(other, True)]
    assert batch.inputs["text"][0].equal(wanted[0].inputs["text"][0])
    assert batch.targets["tokens"][1].equal(wanted[1].targets["tokens"][taken[4]])
