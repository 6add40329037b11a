"""The feature losses: fused and bidirectional, and how their layers are weighed."""

from __future__ import annotations

import math
from typing import Any

import harness
import numpy as np
import pytest
import torch
from torch import Tensor

from transmamba.core.batch import Batch
from transmamba.core.layout import Grid, Layout, Sequence
from transmamba.core.output import Branches, Capture, Output, Stream
from transmamba.distillation.distiller import Distiller
from transmamba.distillation.signals import Signals, StreamGeometry, cosine, unit
from transmamba.errors import UserError
from transmamba.losses.bidirectional import Bidirectional
from transmamba.losses.feature import CosineLoss, Feature, adaptive_weights


def test_adaptive_weights_by_hand() -> None:
    c = np.array([0.9, 0.6, 0.3, 0.05])
    clamped = np.array([0.9, 0.6, 0.3, 0.1])
    raw = 1 / clamped
    torch.testing.assert_close(
        adaptive_weights(torch.tensor(c)), torch.tensor(np.minimum(raw / raw.mean(), 5)), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("value", [-0.7, 0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("layers", [1, 9])
def test_equal_layers_weigh_one(value: float, layers: int) -> None:
    weights = adaptive_weights(torch.full((2, layers), value))
    torch.testing.assert_close(weights, torch.ones(2, layers), rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(20))
def test_adaptive_weights_are_bounded_and_ordered(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    c = 2 * torch.rand(seed % 12 + 1, generator=generator, requires_grad=True) - 1
    weights = adaptive_weights(c)
    assert not weights.requires_grad and (weights > 0).all() and weights.max() <= 5
    uncapped = adaptive_weights(c, cap=math.inf)
    assert float(uncapped.mean()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(weights, uncapped.clamp(max=5))
    order = c.argsort()
    assert (weights[order].diff() <= 1e-6).all(), "the less aligned a layer, the more it weighs"


def test_clamped_below_at_a_tenth() -> None:
    torch.testing.assert_close(
        adaptive_weights(torch.tensor([-0.9, 0.02, 0.8])), adaptive_weights(torch.tensor([0.1, 0.1, 0.8]))
    )


def test_capped_at_five() -> None:
    weights = adaptive_weights(torch.tensor([0.0] + [1.0] * 19))
    assert float(weights[0]) == 5.0 and float(weights[1]) < 1


def geometry(layers: int, width: int = 3) -> StreamGeometry:
    """Each layer has a sublayer of the teacher's, of whatever kind."""
    pairs = {k: k for k in range(layers)}
    return StreamGeometry(
        name="image",
        item="samples",
        num_layers=layers,
        teacher_width=width,
        kinds=("mlp",) * layers,
        pairs=pairs,
        sources={},
    )


GRID = Grid(1, 5)


class Plain:
    """An aligner between equals; of text, where rows have no tokens in common."""

    def __init__(self, num_tokens: int | None = 5) -> None:
        self.num_tokens = num_tokens

    def student_tokens(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        return x if drawn is None else x[:, drawn]

    teacher_tokens = student_tokens

    def project_all(self, layers: list[int], x: Tensor, through: Tensor | None = None) -> Tensor:
        return x


def features(layers: int, seed: int, batch: int = 4, tokens: int = 5) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(batch, tokens, 3, generator=generator) for k in range(layers)}


def signals(
    forward: dict[int, Tensor],
    backward: dict[int, Tensor],
    wanted: dict[int, Tensor],
    layout: Layout = GRID,
    mask: Tensor | None = None,
) -> Signals:
    """Of features that a student and a teacher of one width have made."""
    student = Stream(layout, mask, hidden=forward)
    student.branches = {
        k: Branches((forward[k] + backward[k]) / 2, (forward[k] - backward[k]) / 2) for k in forward
    }
    teacher = Stream(layout, mask, hidden=wanted)
    aligner: Any = Plain(5 if isinstance(layout, Grid) else None)
    empty = Batch({}, {}, torch.zeros(0), {})
    return Signals(Output({"image": student}), Output({"image": teacher}), empty, {"image": aligner})


def numpy_cosines(ours: dict[int, Tensor], theirs: dict[int, Tensor]) -> np.ndarray:
    """(layers, B, L): each token's cosine, in float64."""
    rows = []
    for k in ours:
        a, b = ours[k].double().numpy(), theirs[k].double().numpy()
        rows.append((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
    return np.stack(rows)


@pytest.mark.parametrize("weighting", ["uniform", "linear_depth", "adaptive"])
@pytest.mark.parametrize("part", [Feature, Bidirectional])
def test_formula(part: Any, weighting: Any) -> None:
    forward, backward, wanted = features(4, 0), features(4, 1), features(4, 2)
    loss = part(weighting=weighting).build_stream(geometry(4))
    seen = torch.tensor([[0.7, 0.2, -0.4, 0.5], [0.1, 0.9, 0.3, 0.6]])[: loss.directions]
    loss.observe(seen)
    term = loss(signals(forward, backward, wanted))
    cosines = np.stack([numpy_cosines(x, wanted).mean(-1) for x in (forward, backward)[: loss.directions]])
    inverse = 1 / seen.numpy().clip(0.1)
    weights = {
        "uniform": np.ones((loss.directions, 4)),
        "linear_depth": np.tile(np.array([1, 2, 3, 4]) / 2.5, (loss.directions, 1)),
        "adaptive": (inverse / inverse.mean(1, keepdims=True)).clip(max=5),
    }[weighting]
    expected = (weights[..., None] * (1 - cosines)).mean((0, 1)).sum()
    assert float(term.sum) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(term.parts, cosines.sum(-1), rtol=1e-4, atol=1e-5)


def test_cosine_against_torchs_own() -> None:
    """Value and gradient, in float64 to rounding; the teacher's side is a constant."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=generator).unbind()
    a.requires_grad_()
    wanted = torch.nn.functional.cosine_similarity(a, b, dim=-1)
    made = cosine(a, unit(b))
    assert made.shape == (3, 5)
    torch.testing.assert_close(made, wanted)
    upstream = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    (theirs,) = torch.autograd.grad(wanted, a, upstream)
    (ours,) = torch.autograd.grad(made, a, upstream)
    torch.testing.assert_close(ours, theirs)
    b.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cosine(x, unit(b)), a)
    cosine(a, unit(b)).sum().backward()
    assert b.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosine_of_nothing_and_of_huge_features_is_finite(dtype: torch.dtype) -> None:
    """A zero token has no direction: 0, with a finite gradient. Sums of squares do not overflow."""
    a = torch.tensor([[[0.0, 0.0], [1e15, 1e15], [3.0, -4.0]]], dtype=dtype, requires_grad=True)
    value = cosine(a, unit(torch.tensor([[[1.0, 0.0], [1e15, 1e15], [-3.0, 4.0]]], dtype=dtype)))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach(), torch.tensor([[0.0, 1.0, -1.0]]), rtol=0, atol=0.01)
    value.sum().backward()
    assert a.grad is not None and torch.isfinite(a.grad).all()


def test_linear_depth_grows_and_has_mean_one() -> None:
    weights = Feature(weighting="linear_depth").build_stream(geometry(5)).weights()
    torch.testing.assert_close(weights, torch.tensor([[1 / 3, 2 / 3, 1, 4 / 3, 5 / 3]]))


@pytest.mark.parametrize("weighting", ["uniform", "linear_depth", "adaptive"])
def test_gradient_never_lowers_a_cosine(weighting: Any) -> None:
    """d loss / d c <= 0 for every layer and direction: raw, attached weights break this (c = 0.1, 0.9)."""
    loss = Bidirectional(weighting=weighting).build_stream(geometry(2))
    loss.observe(torch.tensor([[0.1, 0.9], [0.9, 0.1]]))
    cosines = torch.tensor([[0.1, 0.9], [0.9, 0.1]], requires_grad=True)

    def unit(c: Tensor) -> Tensor:
        """One token at cosine c from (1, 0, 0)."""
        return torch.stack([c, (1 - c**2).sqrt(), torch.zeros_like(c)])[None, None]

    forward, backward = ({k: unit(cosines[m, k]) for k in range(2)} for m in range(2))
    wanted = {k: torch.tensor([[[1.0, 0.0, 0.0]]]) for k in range(2)}
    loss(signals(forward, backward, wanted)).sum.backward()
    assert cosines.grad is not None and (cosines.grad <= 0).all() and (cosines.grad < 0).any()
    if weighting == "adaptive":
        assert cosines.grad[0, 0] < cosines.grad[0, 1]


def test_reversed_teacher_is_the_same_number() -> None:
    """Backward branch in scan order against the token-reversed teacher = un-flipped against the teacher."""
    forward, wanted = features(3, 0), features(3, 2)
    results = []
    for reverse in (False, True):
        backward = {k: x.clone().requires_grad_() for k, x in features(3, 1).items()}
        shown = {k: x.flip(1) for k, x in backward.items()} if reverse else backward
        taught = {k: x.flip(1) for k, x in wanted.items()} if reverse else wanted
        loss = Feature().build_stream(geometry(3))
        term = loss(signals(shown, shown, taught))
        term.sum.backward()
        results.append((term, [x.grad for x in backward.values()]))
    torch.testing.assert_close(results[0][0].sum, results[1][0].sum)
    torch.testing.assert_close(results[0][0].parts, results[1][0].parts)
    torch.testing.assert_close(results[0][1], results[1][1])
    # and the two directions together are the mean of the two halves
    both = Bidirectional(weighting="uniform").build_stream(geometry(3))
    first = Feature().build_stream(geometry(3))(signals(forward, forward, wanted)).sum
    second = results[1][0].sum
    merged = both(signals(forward, features(3, 1), wanted)).sum
    torch.testing.assert_close(merged, (first + second) / 2)


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_branches_average_to_the_residual_stream(kind: str) -> None:
    """f_fwd and f_bwd of a real student: their mean is its output, and they do differ."""
    student: Any = harness.tiny_student(kind).eval()
    layers = frozenset(range(student.num_layers))
    capture = {"image": Capture(hidden=layers, branches=layers)}
    stream = student.run(harness.tiny_batch(2).inputs, capture).stream
    for k in layers:
        forward, backward = stream.branches[k]
        torch.testing.assert_close((forward + backward) / 2, stream.hidden[k])
        assert (forward - backward).abs().max() > 1e-4


def test_running_mean() -> None:
    loss = Bidirectional(momentum=0.75).build_stream(geometry(2))
    assert loss.running.isnan().all()
    torch.testing.assert_close(loss.weights(), torch.ones(2, 2))
    first, second = torch.tensor([[0.2, 0.4], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    loss.observe(first)
    torch.testing.assert_close(loss.running, first)
    loss.observe(second)
    torch.testing.assert_close(loss.running, 0.75 * first + 0.25 * second)
    assert "running" in loss.state_dict()


def test_weights_do_not_depend_on_the_micro_batch() -> None:
    """They come from earlier steps alone: two very different batches are weighed alike."""
    loss = Bidirectional().build_stream(geometry(3))
    loss.observe(torch.tensor([[0.9, 0.5, 0.2], [0.3, 0.3, 0.9]]))
    before = loss.weights().clone()
    wanted = features(3, 2)
    loss(signals(wanted, wanted, wanted))
    loss(signals(features(3, 0), features(3, 1), wanted))
    assert torch.equal(loss.weights(), before)


def test_evaluating_a_loss_observes_nothing() -> None:
    distiller = Distiller(harness.tiny_student(), harness.tiny_teacher(), ("bidirectional",))
    loss = distiller.losses["bidirectional"]
    assert isinstance(loss, CosineLoss)
    distiller(harness.tiny_batch(3))
    assert loss.running.isnan().all()
    distiller.loss(harness.tiny_batch(3))
    assert not loss.running.isnan().any()


@pytest.mark.parametrize("part", [Feature, Bidirectional])
def test_standardised_features_by_hand(part: Any) -> None:
    """Cosines of (x - mean) / std, the statistics those of other images; in float64 with numpy."""
    teacher = harness.tiny_teacher()
    distiller = Distiller(harness.tiny_student(), teacher, (part(standardize=True),)).eval()
    calibration = harness.tiny_batch(6, seed=1)
    aligner: Any = distiller.aligners["image"]
    with pytest.raises(UserError, match=r"call distiller\.measure\(batches\)"):
        distiller(harness.tiny_batch(3))
    distiller.measure([harness.rows_of(calibration, rows) for rows in (slice(0, 4), slice(4, 6))])
    compared = {"image": Capture(hidden=frozenset({1, 3}))}
    hidden = teacher(calibration.inputs, compared).stream.hidden
    means = np.stack([hidden[s].double().numpy().reshape(-1, 16).mean(axis=0) for s in (1, 3)])
    stds = np.stack([hidden[s].double().numpy().reshape(-1, 16).std(axis=0) for s in (1, 3)])
    np.testing.assert_allclose(aligner.mean.numpy(), means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aligner.std.numpy(), stds, rtol=1e-4)

    batch = harness.tiny_batch(3)
    student: Any = distiller.student
    layers = frozenset({1, 3})  # after the same number of the teacher's sublayers
    made_of = student.run(batch.inputs, {"image": Capture(hidden=layers, branches=layers)}).stream
    taught = teacher(batch.inputs, compared).stream.hidden
    losses = []
    for t, k in enumerate((1, 3)):
        sides = list(made_of.branches[k]) if part is Bidirectional else [made_of.hidden[k]]
        wanted = (taught[k][:, [1, 2, 0, 3, 4]].double().numpy() - means[t]) / stds[t]
        for side in sides:
            made = aligner.project(k, side).detach().double().numpy()
            made = (made - means[t]) / stds[t]
            lengths = np.linalg.norm(made, axis=-1) * np.linalg.norm(wanted, axis=-1)
            losses.append(1 - ((made * wanted).sum(-1) / lengths).mean(-1))
    (term,) = distiller(batch).values()
    np.testing.assert_allclose(float(term.sum.detach()), np.mean(losses, axis=0).sum(), rtol=1e-4)


@pytest.mark.parametrize("part", [Feature, Bidirectional])
@pytest.mark.parametrize("padded", [False, True])
def test_of_text_a_row_weighs_as_many_tokens_as_it_has(part: Any, padded: bool) -> None:
    """Summed over the real tokens, not averaged in each row; padding says nothing, whatever it holds."""
    forward, backward, wanted = features(3, 0), features(3, 1), features(3, 2)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 0, 0]]).bool()
    real = mask.numpy() if padded else np.ones((4, 5), dtype=bool)
    loss = part(weighting="uniform").build_stream(geometry(3))
    term = loss(signals(forward, backward, wanted, Sequence(), mask if padded else None))
    cosines = np.stack([numpy_cosines(x, wanted) for x in (forward, backward)[: loss.directions]])
    expected = ((1 - cosines) * real).mean((0, 1)).sum()
    assert float(term.sum) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(term.parts, (cosines * real).sum((-1, -2)), rtol=1e-4, atol=1e-5)
