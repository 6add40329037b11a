"""The losses on what happens inside a mixer: teacher-forced alignment and the attention bridge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import harness
import pytest
import torch

from transmamba.core.output import Capture
from transmamba.distillation.distiller import Distiller, geometry_of
from transmamba.errors import UserError
from transmamba.losses.cab import Cab
from transmamba.losses.mixer import Mixer


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


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_triangular_targets_split_attention_in_the_student_s_order(kind: str) -> None:
    """|z - t|² / |t|² + 2 |s - d|² / |d|², d = (tril(A) - triu(A, 1)) V by loops in float64."""
    student: Any = harness.tiny_student(kind)
    distiller = Distiller(student, harness.tiny_teacher(), (Mixer(triangular=2.0),)).eval()
    plain = Distiller(student, distiller.teacher, (Mixer(),), aligner=distiller.aligner).eval()
    images, targets = harness.tiny_batch(3)
    teacher, aligner = distiller.teacher, distiller.aligner
    assert teacher is not None and aligner is not None
    guide = teacher(images, Capture(mixers=frozenset({0, 1})))
    order = [1, 2, 0, 3, 4] if kind == "vim" else [0, 1, 2, 3, 4]
    extra = 0.0
    for k, (t, sublayer) in student.mixer_sources(2).items():
        if sublayer != "attention":
            continue
        attention = teacher.view.blocks[t].attention
        wanted = _split_by_loops(attention, guide.mixers[t]["attention_input"], order)
        shown = guide.mixers[t]["attention_input"][:, order][..., aligner.places]
        _, parts = student.mixer(k, shown, Capture(branches=frozenset({k})))
        made = (parts["spread"] @ aligner.projections[str(k)].weight.T).double()
        errors = (made - wanted).square().sum(dim=(1, 2)) / wanted.square().sum(dim=(1, 2))
        extra += 2.0 * float(errors.sum().detach()) / student.num_layers
    both, without = (float(d(images, targets)["mixer"].sum.detach()) for d in (distiller, plain))
    assert both - without == pytest.approx(extra, rel=1e-4)


def _split_by_loops(attention: Any, x: torch.Tensor, order: list[int]) -> torch.Tensor:
    """What comes from behind (and the token itself) minus what comes from ahead, (B, L, D) float64, tokens in
    `order`; the bias, half of each, cancels."""
    normed = attention.norm(x)[:, order].double()
    heads = attention.heads
    q, k, v = (
        (normed @ p.weight.double().T + p.bias.double()).unflatten(-1, (heads, -1))
        for p in (attention.q, attention.k, attention.v)
    )
    mixed = torch.zeros_like(v)
    for i in range(v.shape[1]):
        scores = torch.stack([(q[:, i] * k[:, j]).sum(-1) for j in range(v.shape[1])]) / q.shape[-1] ** 0.5
        weights = scores.softmax(dim=0)
        for j in range(v.shape[1]):
            mixed[:, i] += (1 if j <= i else -1) * weights[j][..., None] * v[:, j]
    return mixed.flatten(2) @ attention.o.weight.double().T


def test_the_directions_of_a_mixer_add_up() -> None:
    """output + spread is the forward branch, output - spread the backward one: 0 where its D and C are."""
    student: Any = harness.tiny_student("vim")
    mixer = student.layers[0].mixer
    with torch.no_grad():
        mixer.D_b.zero_()
        mixer.x_proj_b.weight[mixer.rank + mixer.d_state :].zero_()
        output, parts = student.mixer(0, torch.randn(2, 5, 12), Capture(branches=frozenset({0})))
    torch.testing.assert_close(output, parts["spread"])


def test_triangular_targets_need_one_grid() -> None:
    student = harness.tiny_student()
    geometry = geometry_of(student, harness.tiny_teacher())
    assert geometry is not None
    with pytest.raises(UserError, match="same patch grid"):
        Mixer(triangular=1.0).build(replace(geometry, ranks=None))
    with pytest.raises(ValueError, match="triangular is -1"):
        Mixer(triangular=-1.0)
