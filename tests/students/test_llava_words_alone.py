"""Losses over a decoder that leave the places of pictures out, against loops over each row's words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hybrids import hybrid, llama
from llavas import MARK, batch, llava, make, moved, together

from transmamba.core.output import Capture, Context
from transmamba.distillation.distiller import Distiller
from transmamba.errors import UserError
from transmamba.losses.feature import Feature
from transmamba.losses.mixer import Mixer
from transmamba.teachers.load import adapt_teacher


def parts() -> tuple[Any, Any, Any]:
    student = moved(llava(make(), image=dict(kind="vim"), decoder=dict(kind="hybrid")))
    made = batch(together(left=False))
    words = int((made.inputs["text_mask"] & (made.inputs["text"] != MARK)).sum())
    return student, adapt_teacher(make()), replace(made, counts={**made.counts, "words": words})


@torch.no_grad()
def test_features_are_those_of_words() -> None:
    student, teacher, given = parts()
    distiller = Distiller(student, teacher, [Feature(stream="decoder", image_tokens=False)])
    assert distiller.items(given) == {"feature/decoder": "words"}
    pairs = distiller.losses["feature/decoder"].pairs
    mine = student.run(given.inputs, {"decoder": Capture(hidden=frozenset(pairs))}).streams["decoder"].hidden
    theirs = teacher(given.inputs, {"decoder": Capture(hidden=frozenset(pairs.values()))})
    wanted, count = 0.0, 0
    for row, ids in enumerate(given.inputs["text"].tolist()):
        for place, word in enumerate(ids):
            if word == MARK or not given.inputs["text_mask"][row, place]:
                continue
            count += 1
            for k, s in pairs.items():
                a, b = mine[k][row, place], theirs.streams["decoder"].hidden[s][row, place]
                wanted += float(1 - torch.dot(a, b) / (a.norm() * b.norm())) / len(pairs)
    assert count == given.counts["words"] < given.counts["tokens"]
    loss = distiller.loss(given)[1]["feature/decoder"]
    assert loss == pytest.approx(wanted / count, rel=1e-5)
    all_places = Distiller(student, teacher, [Feature(stream="decoder")]).loss(given)[1]["feature/decoder"]
    assert abs(all_places - loss) > 1e-3


@torch.no_grad()
def test_mixers_are_compared_on_words() -> None:
    student, teacher, given = parts()
    distiller = Distiller(student, teacher, [Mixer(stream="decoder", image_tokens=False)])
    sources = distiller.losses["mixer/decoder"].sources
    seen = teacher(
        given.inputs,
        {"decoder": Capture(mixers=dict.fromkeys(sources.values(), frozenset(("input", "output"))))},
    ).streams["decoder"]
    context, wanted, count = Context.of(given.inputs), 0.0, 0
    for k, s in sources.items():
        z, _ = student.language_model.mixer(k, seen.mixers[s]["input"], context, Capture())
        t = seen.mixers[s]["output"]
        for row, ids in enumerate(given.inputs["text"]):
            words = (ids != MARK) & given.inputs["text_mask"][row]
            off, size = (z[row] - t[row])[words], t[row][words]
            wanted += float(off.square().sum() / size.square().sum() * words.sum()) / len(sources)
            count += int(words.sum())
    assert count == len(sources) * given.counts["words"]
    loss = distiller.loss(given)[1]["mixer/decoder"]
    assert loss == pytest.approx(wanted / given.counts["words"], rel=1e-5)


def test_both_streams_may_be_asked_of_one_loss_and_texts_alone_are_refused() -> None:
    student, teacher, given = parts()
    both = Distiller(student, teacher, [Feature(image_tokens=False)])
    assert both.items(given) == {"feature/image": "pictures", "feature/decoder": "words"}
    with pytest.raises(UserError, match="image_tokens is false, but image reads no pictures among its words"):
        Distiller(student, teacher, [Mixer(stream="image", image_tokens=False)])
    words = llama()
    with pytest.raises(UserError, match="image_tokens is false, but decoder reads no pictures"):
        Distiller(hybrid(words, 1), adapt_teacher(words), [Feature(image_tokens=False)])


@torch.no_grad()
def test_features_of_words_are_in_units_of_words() -> None:
    """Statistics of numpy's over the words alone of two batches; both losses keep their own."""
    student, teacher, given = parts()
    mine, every = Feature(stream="decoder", image_tokens=False, standardize=True), Feature(standardize=True)
    distiller = Distiller(student, teacher, [mine, every])
    other = batch(together())
    distiller.measure([given, other])
    aligner: Any = distiller.aligners["decoder"]
    after = {"decoder": Capture(hidden=frozenset(aligner.compared))}
    for words in (True, False):
        name = "_of_words" if words else ""
        for place, s in enumerate(aligner.compared):
            found = []
            for batch_of in (given, other):
                inputs = batch_of.inputs
                hidden = teacher(inputs, after).streams["decoder"].hidden[s]
                taken = inputs["text_mask"] & (inputs["text"] != MARK) if words else inputs["text_mask"]
                found.append(hidden[taken].double().numpy())
            tokens = np.concatenate(found)
            assert np.allclose(aligner.get_buffer(f"mean{name}")[place], tokens.mean(0), rtol=1e-4, atol=1e-5)
            assert np.allclose(aligner.get_buffer(f"std{name}")[place], tokens.std(0), rtol=1e-4, atol=1e-5)
    assert (aligner.mean - aligner.mean_of_words).abs().max() > 1e-2
    pairs = distiller.losses["feature/decoder"].pairs
    hidden = (
        student.run(given.inputs, {"decoder": Capture(hidden=frozenset(pairs))}).streams["decoder"].hidden
    )
    theirs = teacher(given.inputs, {"decoder": Capture(hidden=frozenset(pairs.values()))}).streams["decoder"]
    words = given.inputs["text_mask"] & (given.inputs["text"] != MARK)
    wanted = 0.0
    for k, s in pairs.items():
        row = aligner.compared.index(s)
        mean, std = aligner.mean_of_words[row], aligner.std_of_words[row]
        a, b = ((x[words] - mean) / std for x in (hidden[k], theirs.hidden[s]))
        wanted += float((1 - torch.nn.functional.cosine_similarity(a, b)).sum()) / len(pairs)
    loss = distiller.loss(given)[1]["feature/decoder"]
    assert loss == pytest.approx(wanted / given.counts["words"], rel=1e-4)


def test_an_aligner_has_no_more_than_is_asked_for() -> None:
    student, teacher, _ = parts()
    for losses in ([Feature(standardize=True)], [Feature(image_tokens=False)]):
        names = Distiller(student, teacher, losses).aligners["decoder"].state_dict()
        assert not [name for name in names if name.endswith("_of_words")]
