"""What holds for every registered loss that a classifier can have, with both students; a new loss is tested
by existing. What compares embeddings, causal scans, or values at points, is refused here, and tested in
`test_embeddings.py`, `test_mixing_matrix.py` and `students/test_sequence_taught.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import harness
import pytest
import torch
from torch import Tensor

from transmamba.config.registry import LOSSES
from transmamba.core.output import Branches, Logits, Output, Stream, Term
from transmamba.distillation.coupled import couple
from transmamba.distillation.distiller import Distiller
from transmamba.distillation.signals import Signals
from transmamba.errors import UserError
from transmamba.views.sublayers import map_tensors

STUDENTS = ("vim", "ssd_vit")
OF_CLASSIFIERS = harness.classifier_losses()
OF_EMBEDDINGS = ["affinity", "contrastive", "embedding_cosine", "sigmoid"]
OF_TEXTS = ["mixing_matrix"]
OF_POINTS = ["prediction", "teacher_prediction"]
OF_EXPERTS = ["balance", "router_z"]
BATCH = 6
# The least a loss can be: where the student says what the teacher (for cross-entropy: the label) says.
PERFECT: dict[str, float] = {
    "bidirectional": 0.0,
    "cab": 0.0,
    "cross_entropy": 0.0,
    "feature": 0.0,
    "kl": 0.0,
    "mixer": 0.0,
}


def build(name: str, kind: str = "vim") -> Distiller:
    return Distiller(harness.tiny_student(kind), harness.tiny_teacher(), (name,)).eval()


def terms_of(distiller: Distiller, size: int = BATCH) -> Term:
    (term,) = distiller(harness.tiny_batch(size)).values()
    return term


def test_every_loss_states_its_least_value() -> None:
    assert sorted(PERFECT) == OF_CLASSIFIERS, "say in PERFECT what a new loss is for a perfect student"
    families = [*OF_EMBEDDINGS, *OF_TEXTS, *OF_POINTS, *OF_EXPERTS]
    assert sorted([*PERFECT, *families]) == sorted(LOSSES)


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("name", OF_EMBEDDINGS)
def test_a_classifier_has_no_embeddings(name: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"loss {name} compares embeddings, but the student tells 3 classes"):
        build(name, kind)


class Unsaid(torch.nn.Module):
    """A student of one's own that gives logits, and says nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Any = harness.tiny_student()
        self.towers: dict[str, Any] = {}

    def run(self, inputs: Any, captures: Any) -> Output:
        output: Output = self.made.run(inputs, {})
        return output

    def plan(self, view: Any, select: Any) -> Any:
        return iter(())

    def groups(self) -> dict[str, Any]:
        return {}

    def units(self) -> list[torch.nn.Module]:
        return []


@pytest.mark.parametrize("name", ["contrastive", "sigmoid"])
def test_a_student_without_embeddings_is_refused_without_a_teacher_too(name: str) -> None:
    """Where a student does not say what it gives, when it is run: alone, and as part of a step."""
    with pytest.raises(UserError, match=f"loss {name} compares embeddings, but the student tells 3 classes"):
        Distiller(harness.tiny_student(), None, (name,))
    distiller, batch = Distiller(Unsaid(), None, (name,)), harness.tiny_batch(BATCH)
    bank, numbers = distiller(batch, embed=True)
    message = f"loss {name} reads the image embedding of the student, which gives none"
    with pytest.raises(UserError, match=message):
        distiller(batch)
    with pytest.raises(UserError, match=message):
        couple(distiller.losses[name], [bank], numbers, [0], 1, first=True)


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_finite_with_an_item_and_labelled_parts(name: str, kind: str) -> None:
    distiller = build(name, kind)
    term = terms_of(distiller)
    assert term.sum.shape == () and torch.isfinite(term.sum)
    batch = harness.tiny_batch(BATCH)
    assert batch.counts[distiller.items(batch)[name]] == BATCH
    labels = distiller.losses[name].part_names()  # type: ignore[operator]
    assert len(set(labels)) == len(labels) == (0 if term.parts is None else term.parts.numel())
    assert term.parts is None or (not term.parts.requires_grad and (term.parts.abs() <= BATCH + 1e-4).all())


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_gradient_reaches_the_student_and_never_the_teacher(name: str, kind: str) -> None:
    vit = harness.tiny_vit()
    distiller = Distiller(harness.tiny_student(kind), vit, (name,))
    terms_of(distiller).sum.backward()
    reached = [p for p in distiller.student.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(reached) > 5
    assert all(p.grad is None for p in vit.parameters())
    wanted = distiller.used_projections()
    if wanted:
        aligner: Any = distiller.aligners["image"]
        assert {("image", int(k)) for k in aligner.projections} == wanted
        assert all(projection.weight.grad.abs().sum() > 0 for projection in aligner.projections.values())


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_sums_not_means(name: str, kind: str) -> None:
    """What 5 and 3 images add up to is what 8 images are: sum and parts."""
    distiller = build(name, kind)
    batch = harness.tiny_batch(8)
    whole = distiller(batch)[name]
    parts = [distiller(harness.rows_of(batch, rows))[name] for rows in (slice(0, 5), slice(5, 8))]
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum, rtol=1e-5, atol=1e-6)
    if whole.parts is not None:
        torch.testing.assert_close(sum(part.parts for part in parts), whole.parts, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_each_image_counts_alone(name: str) -> None:
    """The sum over a batch is the sum over its images: nothing is coupled across the batch."""
    distiller = build(name)
    batch = harness.tiny_batch(4)
    alone = sum(distiller(harness.rows_of(batch, slice(i, i + 1)))[name].sum for i in range(4))
    torch.testing.assert_close(alone, distiller(batch)[name].sum, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_least_for_a_perfect_student(name: str) -> None:
    distiller = build(name)
    term = distiller.losses[name](perfect_signals(distiller, name))
    assert float(term.sum.detach()) / BATCH == pytest.approx(PERFECT[name], abs=1e-5)


def perfect_signals(distiller: Distiller, name: str) -> Signals:
    """Signals of a student whose outputs are what the teacher's are, after the projection."""
    batch = harness.tiny_batch(BATCH)
    teacher = distiller.teacher
    assert teacher is not None
    loss: Any = distiller.losses[name]
    output = teacher(batch.inputs, loss.teacher_captures())
    taught = output.stream
    stream = Stream(taught.layout)
    student = Output({"image": stream}, output.logits)
    mirror: Any = Mirror()
    if name == "cross_entropy":
        student.logits = Logits(100.0 * torch.nn.functional.one_hot(batch.targets["classes"], 3), lambda x: x)
    if name in ("feature", "bidirectional"):
        stream.hidden = {k: taught.hidden[s] for k, s in loss.pairs.items()}
        stream.branches = {k: Branches(taught.hidden[s]) for k, s in loss.pairs.items()}
    if name == "mixer":
        stream.mixers = {k: {"output": taught.mixers[s]["output"]} for k, s in loss.sources.items()}
    if name == "cab":
        for key in loss.nets:
            loss.nets[key] = torch.nn.Identity()
        for k, s in loss.read.items():
            keys, queries = (taught.mixers[s][n].transpose(1, 2).flatten(2) for n in ("k", "q"))
            stream.mixers[k] = {"B": keys, "C": queries, "B_b": keys, "C_b": queries}
    return Signals(student, output, batch, {"image": mirror})


class Mirror:
    """An aligner between equals."""

    num_tokens = 5

    def teacher_tokens(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        return x if drawn is None else x[:, drawn]

    student_tokens = teacher_tokens

    def project(self, k: int, x: Tensor) -> Tensor:
        return x

    def project_all(self, layers: list[int], x: Tensor, through: Tensor | None = None) -> Tensor:
        return x


def test_the_teacher_gives_no_gradient_even_if_its_tensors_could() -> None:
    """Not because its tensors are constants, but because its pass records nothing."""
    distiller = Distiller(harness.tiny_student(), harness.tiny_teacher(), OF_CLASSIFIERS)
    assert distiller.teacher is not None
    distiller.teacher.view = map_tensors(distiller.teacher.view, lambda t: t.clone().requires_grad_())
    leaves: list[Tensor] = []
    map_tensors(distiller.teacher.view, lambda t: leaves.append(t) or t)
    sum(term.sum for term in distiller(harness.tiny_batch(4)).values()).backward()  # type: ignore[union-attr]
    assert len(leaves) > 20 and all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_the_same_in_half_precision_outputs(name: str) -> None:
    """Losses compute in float32 whatever autocast made of the features."""
    distiller = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        term = terms_of(distiller)
    assert term.sum.dtype == torch.float32
    exact = terms_of(distiller).sum.item()
    assert term.sum.item() == pytest.approx(exact, rel=0.1, abs=0.05)


def test_weights_are_not_inside_the_term() -> None:
    """The trainer weighs, once: a loss that did so itself would count twice."""
    for name in OF_CLASSIFIERS:
        config = LOSSES[name]()
        heavy = Distiller(
            harness.tiny_student(), harness.tiny_teacher(), (replace(config, weight=7.0),)
        ).eval()
        torch.manual_seed(5)
        plain = Distiller(harness.tiny_student(), harness.tiny_teacher(), (config,)).eval()
        heavy.load_state_dict(plain.state_dict())
        assert heavy.weights == {name: 7.0}
        torch.testing.assert_close(terms_of(heavy).sum, terms_of(plain).sum)
