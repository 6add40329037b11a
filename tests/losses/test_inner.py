"""The losses on what happens inside a mixer: teacher-forced alignment and the attention bridge."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import harness
import pytest
import torch

from transmamba.core.batch import Batch
from transmamba.core.layout import Grid, Sequence
from transmamba.core.output import Capture, Context, Output, Stream
from transmamba.distillation.build import geometry_of
from transmamba.distillation.distiller import Distiller
from transmamba.distillation.signals import Signals, StreamGeometry
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
    term = distiller(harness.tiny_batch(4))["mixer"]
    assert float(term.sum.detach()) / 4 == pytest.approx(1, rel=1e-5)


def test_mixer_formula_on_the_teachers_own_inputs() -> None:
    """|z - t|² / |t|² with z from the teacher's residual stream, layer by layer, by hand."""
    distiller = distiller_of("vim", "mixer")
    student: Any = distiller.student
    aligner: Any = distiller.aligners["image"]
    teacher = distiller.teacher
    assert teacher is not None
    batch, named = harness.tiny_batch(3), frozenset(("input", "output"))
    taught = teacher(batch.inputs, {"image": Capture(mixers=dict.fromkeys(range(4), named))}).stream
    order = [1, 2, 0, 3, 4]  # the class token lies in the middle of the student's sequence
    theirs = teacher.view.towers["image"]
    assert student.layout.special == (("cls", 2),) and theirs.layout == Grid(2, 2, (("cls", 0),))
    expected = 0.0
    for k, s in student.sources(theirs.kinds).items():
        shown = taught.mixers[s]["input"][:, order][..., aligner.places]
        layer = student.layers[k]
        made = layer.mixer(layer.norm(shown)).output @ aligner.projections[str(k)].weight.T
        wanted = taught.mixers[s]["output"][:, order]
        errors = [
            float((a - b).square().sum().detach() / b.square().sum())
            for a, b in zip(made, wanted, strict=True)
        ]
        expected += sum(errors) / student.num_layers
    assert float(distiller(batch)["mixer"].sum.detach()) == pytest.approx(expected, rel=1e-4)


def test_mixers_do_not_see_each_other() -> None:
    """Teacher-forced: changing one mixer changes no other's loss."""
    distiller = distiller_of("vim", "mixer")
    batch = harness.tiny_batch(3)
    before = distiller(batch)["mixer"].parts
    with torch.no_grad():
        distiller.student.layers[0].mixer.out_proj.weight.mul_(-3)  # type: ignore[index,union-attr]
    after = distiller(batch)["mixer"].parts
    assert before is not None and after is not None
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1:], after[1:])


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_cab_shapes(kind: str) -> None:
    distiller = distiller_of(kind, "cab")
    student: Any = distiller.student
    nets = distiller.losses["cab"].nets
    assert len(nets) == 2 * student.num_layers
    width = {"vim": 4, "ssd_vit": 16}[kind]
    assert student.parts["B"] == student.parts["C"] == width
    for net in nets.values():  # type: ignore[union-attr,operator]
        assert net[0].in_features == width and net[-1].out_features == 16
    term = distiller(harness.tiny_batch(3))["cab"]
    assert term.parts is not None and term.parts.shape == (student.num_layers,)
    # two distributions are at most 2 apart in squared distance
    assert 0 < float(term.sum.detach()) / 3 <= 2


def image_geometry() -> StreamGeometry:
    geometry = geometry_of(harness.tiny_student(), harness.tiny_teacher())
    assert geometry is not None
    return geometry.streams["image"]


def test_cab_refuses_a_student_without_states() -> None:
    with pytest.raises(UserError, match="cab needs a student whose mixers have B and C"):
        Cab().build_stream(replace(image_geometry(), parts={"gate": 4}))


def test_mixer_of_whole_layers_refuses_a_student_that_does_not_name_them() -> None:
    with pytest.raises(UserError, match="layer is true, but this student's mixers do not name layer"):
        Mixer(layer=True).build_stream(image_geometry())


def test_mixer_loss_is_teacher_forced() -> None:
    geometry = image_geometry()
    assert Mixer().build_stream(geometry).teacher_forced and not Cab().build_stream(geometry).teacher_forced


def test_the_directions_of_a_mixer_add_up() -> None:
    """output + half Wᵀ is the forward branch, output - half Wᵀ the backward one: 0 where its D and C are."""
    student: Any = harness.tiny_student("vim")
    mixer = student.layers[0].mixer
    with torch.no_grad():
        mixer.D_b.zero_()
        mixer.x_proj_b.weight[mixer.rank + mixer.d_state :].zero_()
        mixed = mixer(torch.randn(2, 5, 12), branches=True)
    torch.testing.assert_close(mixed.output, mixed.half @ mixer.out_proj.weight.T)


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_a_mixer_gives_what_is_named(kind: str) -> None:
    student: Any = harness.tiny_student(kind)
    x = torch.randn(2, 5, student.width)
    for named in ((), ("B",), ("C", "B"), ("nothing",)):
        capture = Capture(mixers={0: frozenset(named), 1: frozenset(("C",))})
        output, parts = student.mixer(0, x, Context(), capture)
        assert output.shape == x.shape and set(parts) == set(named) - {"nothing"}


# --- text, whose rows have padding ------------------------------------------------------------------------

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()


class Plain:
    """An aligner between equals, of text."""

    num_tokens = None

    def student_tokens(self, x: torch.Tensor, drawn: torch.Tensor | None = None) -> torch.Tensor:
        return x

    teacher_tokens = student_tokens

    def project(self, k: int, x: torch.Tensor) -> torch.Tensor:
        return x


def text_signals(student: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor]) -> Signals:
    """One mixer of each model."""
    aligner: Any = Plain()
    mine, theirs = (Stream(Sequence(), MASK, mixers={0: inner}) for inner in (student, teacher))
    empty = Batch({}, {}, torch.zeros(0), {})
    return Signals(Output({"text": mine}), Output({"text": theirs}), empty, {"text": aligner})


def text_geometry(width: int, inner: dict[str, int] | None = None) -> StreamGeometry:
    return StreamGeometry(
        name="text",
        item="tokens",
        num_layers=1,
        teacher_width=width,
        kinds=("attention",),
        pairs={0: 0},
        sources={0: 0},
        parts={"B": width, "C": width},
        inner={} if inner is None else {0: inner},
    )


def test_mixer_of_text_by_hand() -> None:
    """Each row's relative error over its real tokens, as heavy as they are many."""
    made, wanted = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).unbind()
    term = Mixer().build_stream(text_geometry(4))(text_signals({"output": made}, {"output": wanted}))
    expected = sum(
        float((made[b, real] - wanted[b, real]).square().sum() / wanted[b, real].square().sum()) * real.sum()
        for b, real in enumerate(MASK)
    )
    assert float(term.sum) == pytest.approx(float(expected), rel=1e-5)


def test_cab_of_text_by_hand() -> None:
    """Summed over real tokens, averaged over heads and over what is compared."""
    generator = torch.Generator().manual_seed(0)
    inner = {name: torch.randn(3, 5, 4, generator=generator) for name in ("B", "C")}
    taught = {name: torch.randn(3, 2, 5, 2, generator=generator) for name in ("k", "q")}
    loss = Cab().build_stream(text_geometry(4))
    for key in loss.nets:
        loss.nets[key] = torch.nn.Identity()
    term = loss(text_signals(inner, taught))
    expected = 0.0
    for mine, theirs in (("B", "k"), ("C", "q")):
        for (b, t), head in product(MASK.nonzero().tolist(), range(2)):
            one = inner[mine][b, t, 2 * head : 2 * head + 2].softmax(0)
            expected += float((one - taught[theirs][b, head, t].softmax(0)).square().sum()) / 2 / 2
    assert float(term.sum) == pytest.approx(expected, rel=1e-5)


def test_cab_where_heads_share_their_keys() -> None:
    """Grouped queries: four channels of queries in two heads, two of keys in one."""
    generator = torch.Generator().manual_seed(0)
    inner = {name: torch.randn(3, 5, 4, generator=generator) for name in ("B", "C")}
    taught = {name: torch.randn(3, heads, 5, 2, generator=generator) for name, heads in (("k", 1), ("q", 2))}
    loss = Cab().build_stream(text_geometry(4, {"q": 4, "k": 2}))
    term = loss(text_signals(inner, taught))
    expected = 0.0
    for mine, theirs, heads in (("B", "k", 1), ("C", "q", 2)):
        with torch.no_grad():
            made = loss.nets[f"0_{mine}"](inner[mine]).unflatten(-1, (heads, 2)).softmax(-1)
        for (b, t), head in product(MASK.nonzero().tolist(), range(heads)):
            wanted = taught[theirs][b, head, t].softmax(0)
            expected += float((made[b, t, head] - wanted).square().sum()) / heads / 2
    assert float(term.sum) == pytest.approx(expected, rel=1e-5)
