"""KL and cross-entropy against their formulas written out in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from transmamba.core.batch import Batch
from transmamba.core.output import Logits, Output
from transmamba.distillation.signals import Geometry, Signals
from transmamba.errors import UserError
from transmamba.losses.cross_entropy import CrossEntropy
from transmamba.losses.kl import KL

GENERATOR = np.random.default_rng(0)
STUDENT, TEACHER = GENERATOR.normal(0, 3, (2, 7, 5))
LABELS = GENERATOR.integers(0, 5, 7)
MIXED = GENERATOR.dirichlet(np.ones(5), 7)


def signals(targets: np.ndarray) -> Signals:
    student, teacher = (said(torch.tensor(x, dtype=torch.float32)) for x in (STUDENT, TEACHER))
    wanted = torch.tensor(targets)
    return Signals(student, teacher, asked(classes=wanted.float() if wanted.ndim == 2 else wanted))


def said(logits: torch.Tensor) -> Output:
    """Of a model whose head is done."""
    return Output(logits=Logits(logits, lambda x: x))


def asked(inputs: dict[str, torch.Tensor] | None = None, **targets: torch.Tensor) -> Batch:
    return Batch(inputs or {}, targets, torch.zeros(0), {})


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_kl_is_t_squared_times_the_divergence(temperature: float) -> None:
    term = KL(temperature=temperature).build()(signals(LABELS))
    p, q = softmax(TEACHER / temperature, axis=1), softmax(STUDENT / temperature, axis=1)
    assert float(term.sum) == pytest.approx(temperature**2 * rel_entr(p, q).sum(), rel=1e-5)


def test_kl_points_from_the_teacher_to_the_student() -> None:
    """KL(teacher || student), not the reverse: they differ."""
    p, q = softmax(TEACHER / 2, axis=1), softmax(STUDENT / 2, axis=1)
    forward, reverse = 4 * rel_entr(p, q).sum(), 4 * rel_entr(q, p).sum()
    assert abs(forward - reverse) > 0.1
    assert float(KL().build()(signals(LABELS)).sum) == pytest.approx(forward, rel=1e-5)


def test_kl_gradient_keeps_its_scale_with_temperature() -> None:
    """What T² is for (Hinton et al.): at high T the gradient tends to centred (student - teacher) / K."""
    given = signals(LABELS)
    assert given.student.logits is not None
    made = given.student.logits().requires_grad_()
    KL(temperature=500.0).build()(given).sum.backward()
    difference = STUDENT - STUDENT.mean(1, keepdims=True) - (TEACHER - TEACHER.mean(1, keepdims=True))
    np.testing.assert_allclose(made.grad, difference / 5, atol=0.02)


def test_kl_refuses_a_temperature_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"temperature is 0.*above 0"):
        KL(temperature=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, MIXED], ids=["hard", "soft"])
def test_cross_entropy(targets: np.ndarray, smoothing: float) -> None:
    term = CrossEntropy(label_smoothing=smoothing).build()(signals(targets))
    wanted = np.eye(5)[targets] if targets.ndim == 1 else targets
    wanted = (1 - smoothing) * wanted + smoothing / 5
    assert float(term.sum) == pytest.approx(-(wanted * log_softmax(STUDENT, axis=1)).sum(), rel=1e-5)


def test_cross_entropy_of_knowing_nothing_is_log_k() -> None:
    given = Signals(said(torch.zeros(4, 8)), None, asked(classes=torch.tensor([0, 1, 2, 3])))
    assert float(CrossEntropy().build()(given).sum) == pytest.approx(4 * math.log(8))


# --- text -------------------------------------------------------------------------------------------------

WORDS, THEIRS = GENERATOR.normal(0, 3, (2, 3, 4, 5))
NEXT = np.array([[1, 4, -100, -100], [0, 0, 2, 3], [-100, -100, -100, -100]])
MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1]]).astype(bool)


def text_signals(mask: bool) -> Signals:
    inputs = {"text_mask": torch.tensor(MASK)} if mask else {}
    student, teacher = (said(torch.tensor(x, dtype=torch.float32)) for x in (WORDS, THEIRS))
    return Signals(student, teacher, asked(inputs, tokens=torch.tensor(NEXT)))


ASKED = (NEXT >= 0) & MASK


@pytest.mark.parametrize("mask", [False, True])
def test_cross_entropy_of_the_words_that_are_asked_for(mask: bool) -> None:
    rows, places = (ASKED if mask else NEXT >= 0).nonzero()
    expected = -log_softmax(WORDS, axis=2)[rows, places, NEXT[rows, places]].sum()
    assert float(CrossEntropy().build()(text_signals(mask)).sum) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mask", [False, True])
def test_kl_of_the_words_that_are_asked_for(mask: bool) -> None:
    """Neither padding nor a document's last word, whose next one is another document's."""
    wanted = ASKED if mask else NEXT >= 0
    p, q = softmax(THEIRS / 2, axis=2), softmax(WORDS / 2, axis=2)
    expected = 4 * rel_entr(p, q).sum(2)[wanted].sum()
    assert 0 < wanted.sum() < wanted.size
    assert float(KL().build()(text_signals(mask)).sum) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [KL, CrossEntropy])
def test_what_is_counted_are_the_words_that_are_asked_for(loss: Any) -> None:
    """Answers, where a batch counts them apart; whoever counts otherwise is stopped."""
    given, answers = text_signals(mask=True), int(ASKED.sum())
    counted = {
        counts: replace(given, batch=replace(given.batch, counts=dict(counts)))
        for counts in ((("tokens", answers),), (("tokens", 9), ("answers", answers)), (("tokens", 9),))
    }
    alone, apart, wrong = counted.values()
    built = loss().build()
    assert [built.item(each.batch) for each in (alone, apart)] == ["tokens", "answers"]
    built(alone), built(apart)
    with pytest.raises(AssertionError, match=f"{answers} targets, but the batch counts 9 tokens"):
        built(wrong)


def test_nothing_asked_is_zero_with_zero_gradients() -> None:
    words = torch.tensor(WORDS, dtype=torch.float32, requires_grad=True)
    nothing = asked(tokens=torch.full((3, 4), -100))
    term = CrossEntropy().build()(Signals(said(words), None, nothing))
    term.sum.backward()
    assert float(term.sum.detach()) == 0 and words.grad is not None and not words.grad.any()


@pytest.mark.parametrize(
    ("theirs", "ours"), [(3, 4), (None, 3), (3, None)], ids=["another", "an embedder", "no number"]
)
def test_classes_must_be_the_same(theirs: int | None, ours: int | None) -> None:
    """A module that does not say how many it has is not refused: its logits will tell."""
    geometry = Geometry({}, teacher_classes=theirs, student_classes=ours)
    if ours is None:
        KL().build(geometry)
        return
    with pytest.raises(UserError, match=f"teacher has {theirs or 0} and the student {ours}; fine-tune"):
        KL().build(geometry)
