"""KL and cross-entropy against their formulas written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from transmamba.core.output import Output, TokenLayout
from transmamba.distillation.signals import Signals
from transmamba.losses.cross_entropy import CrossEntropy
from transmamba.losses.kl import KL

LAYOUT = TokenLayout(grid=(1, 1))
GENERATOR = np.random.default_rng(0)
STUDENT, TEACHER = GENERATOR.normal(0, 3, (2, 7, 5))
LABELS = GENERATOR.integers(0, 5, 7)
MIXED = GENERATOR.dirichlet(np.ones(5), 7)


def signals(targets: np.ndarray) -> Signals:
    student, teacher = (Output(torch.tensor(x, dtype=torch.float32), LAYOUT) for x in (STUDENT, TEACHER))
    wanted = torch.tensor(targets)
    return Signals(student, teacher, wanted.float() if wanted.ndim == 2 else wanted)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_kl_is_t_squared_times_the_divergence(temperature: float) -> None:
    term = KL(temperature=temperature).build()(signals(LABELS))
    p, q = softmax(TEACHER / temperature, axis=1), softmax(STUDENT / temperature, axis=1)
    assert term.count == 7
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
    given.student.logits.requires_grad_()
    KL(temperature=500.0).build()(given).sum.backward()
    difference = STUDENT - STUDENT.mean(1, keepdims=True) - (TEACHER - TEACHER.mean(1, keepdims=True))
    np.testing.assert_allclose(given.student.logits.grad, difference / 5, atol=0.02)


def test_kl_refuses_a_temperature_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"temperature is 0.*above 0"):
        KL(temperature=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, MIXED], ids=["hard", "soft"])
def test_cross_entropy(targets: np.ndarray, smoothing: float) -> None:
    term = CrossEntropy(label_smoothing=smoothing).build()(signals(targets))
    wanted = np.eye(5)[targets] if targets.ndim == 1 else targets
    wanted = (1 - smoothing) * wanted + smoothing / 5
    assert term.count == 7
    assert float(term.sum) == pytest.approx(-(wanted * log_softmax(STUDENT, axis=1)).sum(), rel=1e-5)


def test_cross_entropy_of_knowing_nothing_is_log_k() -> None:
    given = Signals(Output(torch.zeros(4, 8), LAYOUT), None, torch.tensor([0, 1, 2, 3]))
    assert float(CrossEntropy().build()(given).sum) == pytest.approx(4 * math.log(8))
