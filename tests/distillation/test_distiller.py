"""The distiller as users hold it: losses by name, a loop of their own, the token draw."""

from __future__ import annotations

from typing import Any

import harness
import pytest
import timm
import torch

from transmamba.config.registry import LOSSES
from transmamba.core.output import Capture
from transmamba.distillation.distiller import Distiller, geometry_of
from transmamba.distillation.signals import cosine, unit
from transmamba.errors import UserError
from transmamba.losses.feature import CosineLoss
from transmamba.losses.kl import KL


def test_a_loop_of_ten_lines_learns() -> None:
    distiller = Distiller(harness.tiny_student(), harness.tiny_vit())
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-2)
    images, targets = harness.tiny_batch(16)
    losses = []
    for step in range(12):
        loss, parts = distiller.loss(images, targets, step)
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
    images, targets = harness.tiny_batch(5)
    terms = distiller(images, targets)
    total, parts = distiller.loss(images, targets)
    expected = (terms["cross_entropy"].sum + 0.25 * terms["kl"].sum + terms["feature"].sum) / 5
    torch.testing.assert_close(total, expected)
    assert parts["kl"] == pytest.approx(float(terms["kl"].sum.detach()) / 5)
    assert distiller.weights == {"cross_entropy": 1.0, "kl": 0.25, "feature": 1.0}


def test_two_of_a_kind_get_names_of_their_own() -> None:
    distiller = Distiller(
        harness.tiny_student(), harness.tiny_teacher(), (KL(), KL(temperature=4), KL(temperature=8))
    )
    assert list(distiller(*harness.tiny_batch(2))) == ["kl", "kl_2", "kl_3"]


def test_cross_entropy_alone_needs_no_teacher_and_any_module() -> None:
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    for student in (plain, harness.tiny_student(), harness.tiny_vit()):
        total, _ = Distiller(student, None, ("cross_entropy",)).loss(*harness.tiny_batch(2))
        total.backward()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Distiller(harness.tiny_student(), None, ("kl", "cross_entropy")), "kl needs .* teacher"),
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
    distiller.loss(*harness.tiny_batch(2))


@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_pairs_of_layers(kind: str) -> None:
    """Teacher block t with student layer floor((t + 1) Ls / Lt) - 1."""
    geometry = geometry_of(harness.tiny_student(kind), harness.tiny_teacher())
    assert geometry is not None
    assert geometry.pairs == ({1: 0, 3: 1} if kind == "vim" else {0: 0, 1: 1})


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
    draws = [one.draw_tokens(step, device) for step in range(30)]
    torch.manual_seed(99)
    for step, draw in enumerate(draws):
        assert draw is not None and len(draw) == 2
        assert torch.equal(draw, two.draw_tokens(step, device))  # type: ignore[arg-type]
        assert draw.tolist() == sorted(set(draw.tolist()))
    assert len({tuple(draw.tolist()) for draw in draws if draw is not None}) >= 8  # of 10
    seen = torch.stack([draw for draw in draws if draw is not None]).flatten().bincount(minlength=5)
    assert (seen > 3).all(), "every token has its turn"
    other = drawing(0.4, seed=1)
    assert any(not torch.equal(other.draw_tokens(s, device), draws[s]) for s in range(5))  # type: ignore[arg-type]


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawing(0.4).draw_tokens(3, torch.device("cpu"))
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())
    distiller = drawing(0.4)
    state = torch.get_rng_state()
    distiller(*harness.tiny_batch(2), 3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_loss_on_drawn_tokens_by_hand(fraction: float) -> None:
    """Exactly the cosines of those tokens, indexed out of a full pass."""
    distiller, (images, targets) = drawing(fraction), harness.tiny_batch(3)
    student: Any = distiller.student
    aligner, teacher = distiller.aligner, distiller.teacher
    assert aligner is not None and teacher is not None
    layers = frozenset({1, 3})
    full = student.run(images, Capture(hidden=layers, branches=layers))
    guide = teacher(images, Capture(hidden=frozenset({0, 1})))
    drawn = distiller.draw_tokens(5, images.device)
    drawn = torch.arange(5) if drawn is None else drawn
    order = torch.tensor([1, 2, 0, 3, 4])
    cosines: dict[str, list[torch.Tensor]] = {"feature": [], "bidirectional": []}
    for k, t in {1: 0, 3: 1}.items():
        wanted = unit(guide.hidden[t][:, order][:, drawn])
        cosines["feature"].append(cosine(aligner.project(k, full.hidden[k][:, drawn]), wanted))
        for branch in full.branches[k]:
            cosines["bidirectional"].append(cosine(aligner.project(k, branch[:, drawn]), wanted))
    terms = distiller(images, targets, 5)
    for name, values in cosines.items():
        torch.testing.assert_close(terms[name].sum, (1 - torch.stack(values)).mean(0).sum())


@pytest.mark.parametrize("kept", [(), (0,), (0, 1)], ids=str)
@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_branches_of_layers_that_kept_their_attention(kept: tuple[int, ...], fraction: float) -> None:
    """Both directions of such a layer are its one output; layer by layer as in one product."""
    torch.manual_seed(1)
    student: Any = timm.create_model(
        "ssd_vit_micro_patch2_8", num_classes=3, attention_layers=list(kept), **harness.TEACHER
    )
    distiller = Distiller(student, harness.tiny_teacher(), ("bidirectional",), token_fraction=fraction).eval()
    images, targets = harness.tiny_batch(3)
    aligner, teacher = distiller.aligner, distiller.teacher
    assert aligner is not None and teacher is not None
    with torch.no_grad():
        for parameter in distiller.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    layers = frozenset({0, 1})
    full = student.run(images, Capture(branches=layers))
    guide = teacher(images, Capture(hidden=layers))
    drawn = distiller.draw_tokens(5, images.device)
    drawn = torch.arange(5) if drawn is None else drawn
    values = [
        cosine(aligner.project(k, branch[:, drawn]), unit(guide.hidden[k][:, drawn]))
        for k in (0, 1)
        for branch in full.branches[k]
    ]
    apart = {k: not torch.equal(*full.branches[k]) for k in (0, 1)}
    assert apart == {k: k not in kept for k in (0, 1)}
    term = distiller(images, targets, 5)["bidirectional"]
    torch.testing.assert_close(term.sum, (1 - torch.stack(values)).mean(0).sum())


def test_drawn_losses_average_to_the_full_one() -> None:
    """Over all steps the draw is fair: its mean comes near the loss over every token."""
    images, targets = harness.tiny_batch(2)
    part, full = drawing(0.4), drawing(1.0)
    full.load_state_dict(part.state_dict())
    with torch.no_grad():
        drawn = torch.stack([part(images, targets, step)["feature"].sum for step in range(200)])
        assert float(drawn.mean()) == pytest.approx(float(full(images, targets)["feature"].sum), rel=0.05)
    assert drawn.std() > 0


def test_only_feature_losses_look_at_fewer_tokens() -> None:
    images, targets = harness.tiny_batch(2)
    names = tuple(name for name in LOSSES if name not in ("feature", "bidirectional"))
    torch.manual_seed(0)
    part = drawing(0.4, losses=names)
    full = drawing(1.0, losses=names)
    full.load_state_dict(part.state_dict())
    for name, term in part(images, targets).items():
        torch.testing.assert_close(term.sum, full(images, targets)[name].sum)


def test_state_dict_holds_running_means() -> None:
    distiller = drawing(1.0)
    distiller.loss(*harness.tiny_batch(3))
    fresh = drawing(1.0)
    fresh.load_state_dict(distiller.state_dict())
    loss = fresh.losses["bidirectional"]
    assert isinstance(loss, CosineLoss) and not loss.running.isnan().any()
