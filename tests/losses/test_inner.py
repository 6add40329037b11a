"""The losses on what happens inside a mixer: teacher-forced alignment and the attention bridge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import harness
import pytest
import torch

from transmamba.distiller import Distiller, geometry_of
from transmamba.errors import UserError
from transmamba.losses.cab import Cab
from transmamba.losses.mixer import Mixer
from transmamba.outputs import Capture


def distiller_of(kind: str, name: str) -> Distiller:
    return Distiller(harness.tiny_student(kind), harness.tiny_teacher(), (name,)).eval()


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_mixer_is_one_for_a_mixer_that_does_nothing(kind: str) -> None:
    distiller = distiller_of(kind, "mixer")
    with torch.no_grad():
        for name, parameter in distiller.student.named_parameters():
            if "out_proj" in name or ".attn.proj" in name:
                parameter.zero_()
    term = distiller(*harness.tiny_batch(4))["mixer"]
    assert float(term.sum.detach()) / term.count == pytest.approx(1, rel=1e-5)


def test_mixer_formula_on_the_teachers_own_inputs() -> None:
    """|z - t|² / |t|² with z from the teacher's residual stream, layer by layer, by hand."""
    distiller = distiller_of("vim", "mixer")
    student: Any = distiller.student
    aligner, teacher = distiller.aligner, distiller.teacher
    assert aligner is not None and teacher is not None
    images, targets = harness.tiny_batch(3)
    guide = teacher(images, Capture(mixers=frozenset({0, 1})))
    order = [1, 2, 0, 3, 4]  # the class token lies in the middle of the student's sequence
    assert student.layout.special == (("cls", 2),) and teacher.layout.special == (("cls", 0),)
    expected = 0.0
    for k, (t, sublayer) in student.mixer_sources(2).items():
        shown = guide.mixers[t][f"{sublayer}_input"][:, order][..., aligner.places]
        layer = student.layers[k]
        made = layer.mixer(layer.norm(shown)).output @ aligner.projections[str(k)].weight.T
        wanted = guide.mixers[t][f"{sublayer}_output"][:, order]
        errors = [
            float((a - b).square().sum().detach() / b.square().sum())
            for a, b in zip(made, wanted, strict=True)
        ]
        expected += sum(errors) / student.num_layers
    assert float(distiller(images, targets)["mixer"].sum.detach()) == pytest.approx(expected, rel=1e-4)


def test_mixers_do_not_see_each_other() -> None:
    """Teacher-forced: changing one mixer changes no other's loss."""
    distiller = distiller_of("vim", "mixer")
    images, targets = harness.tiny_batch(3)
    before = distiller(images, targets)["mixer"].parts
    with torch.no_grad():
        distiller.student.layers[0].mixer.out_proj.weight.mul_(-3)  # type: ignore[index,union-attr]
    after = distiller(images, targets)["mixer"].parts
    assert before is not None and after is not None
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1:], after[1:])


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_cab_shapes(kind: str) -> None:
    distiller = distiller_of(kind, "cab")
    student: Any = distiller.student
    nets = distiller.losses["cab"].nets
    assert len(nets) == 2 * student.num_layers
    width = {"vim": 4, "ssd_vit": 16}[kind]
    assert student.state_width == width
    for net in nets.values():  # type: ignore[union-attr,operator]
        assert net[0].in_features == width and net[-1].out_features == 16
    term = distiller(*harness.tiny_batch(3))["cab"]
    assert term.parts is not None and term.parts.shape == (student.num_layers,)
    # two distributions are at most 2 apart in squared distance
    assert 0 < float(term.sum.detach()) / 3 <= 2


def test_cab_refuses_a_student_without_states() -> None:
    geometry = geometry_of(harness.tiny_student(), harness.tiny_teacher())
    assert geometry is not None
    with pytest.raises(UserError, match="cab needs a student whose mixers have B and C"):
        Cab().build(replace(geometry, state=0))


def test_mixer_loss_is_teacher_forced() -> None:
    geometry = geometry_of(harness.tiny_student(), harness.tiny_teacher())
    assert geometry is not None
    assert Mixer().build(geometry).teacher_forced and not Cab().build(geometry).teacher_forced
