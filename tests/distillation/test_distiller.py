"""The distiller as users hold it: losses by name, a loop of their own, the token draw."""

from __future__ import annotations

from typing import Any

import harness
import pytest
import timm
import torch

from transmamba.core.batch import Batch
from transmamba.core.output import Capture
from transmamba.distillation.build import geometry_of
from transmamba.distillation.distiller import Distiller
from transmamba.distillation.signals import cosine, unit
from transmamba.errors import UserError
from transmamba.losses.feature import CosineLoss
from transmamba.losses.kl import KL
from transmamba.teachers.teacher import Teacher
from transmamba.views.sublayers import map_tensors


def aligner_of(distiller: Distiller) -> Any:
    """Of pictures: the only one."""
    (aligner,) = distiller.aligners.values()
    return aligner


def test_a_loop_of_ten_lines_learns() -> None:
    distiller = Distiller(harness.tiny_student(), harness.tiny_vit())
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-2)
    batch = harness.tiny_batch(16)
    losses = []
    for step in range(12):
        loss, parts = distiller.loss(batch, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert parts.keys() == {"cross_entropy", "kl", "bidirectional"}


def test_loss_is_the_weighted_sum_of_means() -> None:
    distiller = Distiller(
        harness.tiny_student(), harness.tiny_teacher(), ("cross_entropy", KL(weight=0.25), "feature")
    ).eval()
    batch = harness.tiny_batch(5)
    terms = distiller(batch)
    total, parts = distiller.loss(batch)
    expected = (terms["cross_entropy"].sum + 0.25 * terms["kl"].sum + terms["feature"].sum) / 5
    torch.testing.assert_close(total, expected)
    assert parts["kl"] == pytest.approx(float(terms["kl"].sum.detach()) / 5)
    assert distiller.weights == {"cross_entropy": 1.0, "kl": 0.25, "feature": 1.0}


def test_two_of_a_kind_get_names_of_their_own() -> None:
    distiller = Distiller(
        harness.tiny_student(), harness.tiny_teacher(), (KL(), KL(temperature=4), KL(temperature=8))
    )
    assert list(distiller(harness.tiny_batch(2))) == ["kl", "kl_2", "kl_3"]


def test_cross_entropy_alone_needs_no_teacher_and_any_module() -> None:
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    for student in (plain, harness.tiny_student(), harness.tiny_vit()):
        total, _ = Distiller(student, None, ("cross_entropy",)).loss(harness.tiny_batch(2))
        total.backward()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Distiller(harness.tiny_student(), None, ("kl", "cross_entropy")),
            "losses kl need a teacher",
        ),
        (lambda: Distiller(harness.tiny_student(), harness.tiny_vit(), ()), "no losses; name at least one"),
        (lambda: Distiller(harness.tiny_student(), harness.tiny_vit(), ("kll",)), "unknown loss 'kll'.*'kl'"),
        (
            lambda: Distiller(harness.tiny_student(num_classes=4), harness.tiny_vit(), ("kl",)),
            "teacher has 3 and the student 4; fine-tune",
        ),
        (lambda: Distiller(harness.tiny_student(), torch.nn.Linear(2, 2)), "no teacher adapter for .*Linear"),
        (lambda: Distiller(torch.nn.Flatten(), harness.tiny_vit(), ("feature",)), "feature needs a Mamba"),
        (lambda: Distiller(harness.tiny_student(num_classes=4), harness.tiny_vit(), (KL(),)), "fine-tune"),
    ],
)
def test_mistakes(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_features_alone_need_no_common_classes() -> None:
    distiller = Distiller(harness.tiny_student(num_classes=4), harness.tiny_vit(), ("bidirectional",))
    distiller.loss(harness.tiny_batch(2))


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_pairs_of_layers(kind: str) -> None:
    """The end of teacher block t with student layer floor((t + 1) Ls / Lt) - 1."""
    geometry = geometry_of(harness.tiny_student(kind), harness.tiny_teacher())
    assert geometry is not None and list(geometry.streams) == ["image"]
    stream = geometry.streams["image"]
    assert stream.kinds == ("attention", "mlp") * 2 and stream.item == "samples"
    assert stream.pairs == ({1: 1, 3: 3} if kind == "vim" else {0: 1, 1: 3})
    assert stream.sources == ({0: 0, 1: 1, 2: 2, 3: 3} if kind == "vim" else {0: 0, 1: 2})


# --- the token draw ---------------------------------------------------------------------------------------


FEATURES = ("bidirectional", "feature")


def drawing(fraction: float, seed: int = 0, losses: tuple[str, ...] = FEATURES) -> Distiller:
    return Distiller(
        harness.tiny_student(), harness.tiny_teacher(), losses, token_fraction=fraction, seed=seed
    ).eval()


def test_drawn_tokens_belong_to_the_step() -> None:
    """The same for every micro-batch, rank and process of a step; another the next step and seed."""
    one, two = drawing(0.4), drawing(0.4)
    device = torch.device("cpu")
    draws = [one.draw_tokens(step, device)["image"] for step in range(30)]
    torch.manual_seed(99)
    for step, draw in enumerate(draws):
        assert len(draw) == 2
        assert torch.equal(draw, two.draw_tokens(step, device)["image"])
        assert draw.tolist() == sorted(set(draw.tolist()))
    assert len({tuple(draw.tolist()) for draw in draws}) >= 8  # of 10
    seen = torch.stack(draws).flatten().bincount(minlength=5)
    assert (seen > 3).all(), "every token has its turn"
    other = drawing(0.4, seed=1)
    assert any(not torch.equal(other.draw_tokens(s, device)["image"], draws[s]) for s in range(5))
    assert drawing(1.0).draw_tokens(0, device) == {}, "nothing is drawn where all are looked at"


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawing(0.4).draw_tokens(3, torch.device("cpu"))
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())
    distiller = drawing(0.4)
    state = torch.get_rng_state()
    distiller(harness.tiny_batch(2), distiller.draw_tokens(3, torch.device("cpu")))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_loss_on_drawn_tokens_by_hand(fraction: float) -> None:
    """Exactly the cosines of those tokens, indexed out of a full pass."""
    distiller, batch = drawing(fraction), harness.tiny_batch(3)
    student: Any = distiller.student
    aligner, teacher = aligner_of(distiller), distiller.teacher
    assert teacher is not None
    layers = frozenset({1, 3})
    full = student.run(batch.inputs, {"image": Capture(hidden=layers, branches=layers)}).stream
    taught = teacher(batch.inputs, {"image": Capture(hidden=layers)}).stream
    draw = distiller.draw_tokens(5, torch.device("cpu"))
    drawn = draw.get("image", torch.arange(5))
    order = torch.tensor([1, 2, 0, 3, 4])
    cosines: dict[str, list[torch.Tensor]] = {"feature": [], "bidirectional": []}
    for k in (1, 3):  # two layers a block, as the teacher has two sublayers
        wanted = unit(taught.hidden[k][:, order][:, drawn])
        cosines["feature"].append(cosine(aligner.project(k, full.hidden[k][:, drawn]), wanted))
        for branch in full.branches[k]:
            cosines["bidirectional"].append(cosine(aligner.project(k, branch[:, drawn]), wanted))
    terms = distiller(batch, draw)
    for name, values in cosines.items():
        by_row = torch.stack(values).mean(dim=2)
        torch.testing.assert_close(terms[name].sum, (1 - by_row).mean(0).sum())


@pytest.mark.parametrize("kept", [(), (0,), (0, 1)], ids=str)
@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_branches_of_layers_that_kept_their_attention(kept: tuple[int, ...], fraction: float) -> None:
    """Both directions of such a layer are its one output; layer by layer as in one product."""
    torch.manual_seed(1)
    student: Any = timm.create_model(
        "ssd_vit_micro_patch2_8", num_classes=3, attention_layers=list(kept), **harness.TEACHER
    )
    distiller = Distiller(student, harness.tiny_teacher(), ("bidirectional",), token_fraction=fraction).eval()
    batch = harness.tiny_batch(3)
    aligner, teacher = aligner_of(distiller), distiller.teacher
    assert teacher is not None
    with torch.no_grad():
        for parameter in distiller.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    full = student.run(batch.inputs, {"image": Capture(branches=frozenset({0, 1}))}).stream
    taught = teacher(batch.inputs, {"image": Capture(hidden=frozenset({1, 3}))}).stream
    draw = distiller.draw_tokens(5, torch.device("cpu"))
    drawn = draw.get("image", torch.arange(5))
    values = [
        cosine(aligner.project(k, branch[:, drawn]), unit(taught.hidden[2 * k + 1][:, drawn])).mean(dim=1)
        for k in (0, 1)
        for branch in full.branches[k]
    ]
    apart = {k: not torch.equal(*full.branches[k]) for k in (0, 1)}
    assert apart == {k: k not in kept for k in (0, 1)}
    term = distiller(batch, draw)["bidirectional"]
    torch.testing.assert_close(term.sum, (1 - torch.stack(values)).mean(0).sum())


def test_drawn_losses_average_to_the_full_one() -> None:
    """Over all steps the draw is fair: its mean comes near the loss over every token."""
    batch, device = harness.tiny_batch(2), torch.device("cpu")
    part, full = drawing(0.4), drawing(1.0)
    full.load_state_dict(part.state_dict())
    with torch.no_grad():
        drawn = torch.stack(
            [part(batch, part.draw_tokens(step, device))["feature"].sum for step in range(200)]
        )
        assert float(drawn.mean()) == pytest.approx(float(full(batch)["feature"].sum), rel=0.05)
    assert drawn.std() > 0


def test_only_feature_losses_look_at_fewer_tokens() -> None:
    batch = harness.tiny_batch(2)
    names = tuple(name for name in harness.classifier_losses() if name not in ("feature", "bidirectional"))
    torch.manual_seed(0)
    part = drawing(0.4, losses=names)
    full = drawing(1.0, losses=names)
    full.load_state_dict(part.state_dict())
    for name, term in part(batch, part.draw_tokens(0, torch.device("cpu"))).items():
        torch.testing.assert_close(term.sum, full(batch)[name].sum)


def test_state_dict_holds_running_means() -> None:
    distiller = drawing(1.0)
    distiller.loss(harness.tiny_batch(3))
    fresh = drawing(1.0)
    fresh.load_state_dict(distiller.state_dict())
    loss = fresh.losses["bidirectional"]
    assert isinstance(loss, CosineLoss) and not loss.running.isnan().any()


# --- what else may be distilled ---------------------------------------------------------------------------


def test_two_ordinary_classifiers() -> None:
    """KL needs no Mamba: T² KL(teacher || student), from both models' own logits."""
    torch.manual_seed(5)
    student = timm.create_model("vit_tiny_patch16_224", num_classes=3, **harness.TEACHER).eval()
    vit, batch = harness.tiny_vit(), harness.tiny_batch(4)
    distiller = Distiller(student, vit, ("kl", "cross_entropy"))
    terms = distiller(batch)
    p, q = ((model(batch.inputs["image"]) / 2).softmax(dim=1).double() for model in (vit, student))
    torch.testing.assert_close(terms["kl"].sum.double(), 4 * (p * (p / q).log()).sum(), rtol=1e-4, atol=1e-6)
    terms["kl"].sum.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert not list(distiller.aligners)


def test_a_batch_is_asked_for() -> None:
    distiller = Distiller(harness.tiny_student(), None, ("cross_entropy",))
    with pytest.raises(UserError, match=r"reads a Batch, this is Tensor; write transmamba\.image_batch"):
        distiller.loss(torch.zeros(2, 3, 8, 8))  # type: ignore[arg-type]


def test_items_are_known_from_the_batch_alone() -> None:
    distiller = Distiller(harness.tiny_student(), harness.tiny_teacher(), harness.classifier_losses())
    pictures = harness.tiny_batch(2)
    assert distiller.items(pictures) == dict.fromkeys(harness.classifier_losses(), "samples")
    text = Batch({}, {"tokens": torch.zeros(1, 2)}, torch.zeros(1), {})
    found = distiller.items(text)
    assert (found["cross_entropy"], found["kl"]) == ("tokens", "tokens")
    answers = distiller.items(Batch({}, text.targets, text.index, {"answers": 2}))
    assert (answers["cross_entropy"], answers["kl"]) == ("answers", "answers")


def test_the_kept_coordinates_are_where_projections_start() -> None:
    kept = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 15])
    distiller = Distiller(harness.tiny_student(), harness.tiny_vit(), ("feature",), kept={"image": kept})
    x = torch.randn(1, 5, 12)
    assert torch.equal(aligner_of(distiller).project(1, x)[..., kept], x)


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_a_teacher_in_bfloat16(kind: str) -> None:
    """Its own passes are in its type; the student's mixers get their own, and every loss stays finite and
    near that of the whole teacher."""
    teacher = harness.tiny_teacher()
    half = Teacher(
        map_tensors(teacher.view, lambda tensor: tensor.bfloat16()),
        source="half",
        preprocessing=teacher.preprocessing,
        num_params=teacher.num_params,
    )
    batch, losses = harness.tiny_batch(4), harness.classifier_losses()
    exact, rounded = (Distiller(harness.tiny_student(kind), each, losses).eval() for each in (teacher, half))
    rounded.load_state_dict(exact.state_dict())
    inner = half(batch.inputs, {"image": Capture(hidden=frozenset({1}))})
    assert inner.stream.hidden[1].dtype == torch.bfloat16
    wanted, terms = exact(batch), rounded(batch)
    for name, term in terms.items():
        assert term.sum.dtype == torch.float32, name
        assert float(term.sum.detach()) == pytest.approx(float(wanted[name].sum.detach()), rel=0.1), name
    torch.stack([term.sum for term in terms.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rounded.parameters())


def test_a_loss_without_items_contributes_nothing() -> None:
    """In a loop of one's own too: not NaN, and not a division by zero."""
    distiller = Distiller(harness.tiny_student(), None, ("cross_entropy",))
    batch = harness.tiny_batch(2)
    empty = Batch(
        {"image": batch.inputs["image"]},
        {"classes": torch.full((2,), -100)},  # nothing is asked
        batch.index,
        {"samples": 0},
    )
    total, parts = distiller.loss(empty)
    total.backward()
    assert float(total.detach()) == 0 and parts == {}
    assert all(p.grad is not None and not p.grad.any() for p in distiller.student.parameters())
