"""Losses over embeddings: against open_clip's own, formulas written out, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.core.batch import Batch
from transmamba.core.output import Output
from transmamba.distillation.coupled import couple
from transmamba.distillation.signals import Signals
from transmamba.errors import UserError
from transmamba.losses import contrastive
from transmamba.losses.affinity import Affinity
from transmamba.losses.contrastive import Contrastive
from transmamba.losses.embedding_cosine import EmbeddingCosine
from transmamba.losses.sigmoid import Sigmoid

PAIRS, WIDTH, THEIRS = 7, 5, 8
SCALE, BIAS, TEACHER_SCALE = 14.0, -9.5, 30.0
GROUP = torch.tensor([4, 1, 4, 2, 1, 4, 9])  # three captions of one image, two of another
COUPLED = [Contrastive(), Contrastive(local_loss=True), Sigmoid(), Affinity()]
EVERY = [*COUPLED, EmbeddingCosine()]


def named(config: Any) -> str:
    return config.name + ("_local" if getattr(config, "local_loss", False) else "")


def rows(seed: int, width: int = WIDTH, count: int = PAIRS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1)


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def model(seed: int, scale: float, width: int = WIDTH, learns: bool = False) -> Output:
    embeddings = {"image": rows(seed, width), "text": rows(seed + 1, width)}
    numbers = {"scale": number(scale), "bias": number(BIAS)}
    for tensor in (*embeddings.values(), *numbers.values()) if learns else ():
        tensor.requires_grad_()
    return Output(embeddings=embeddings, scalars=numbers)


def signals(group: Tensor | None = None, width: int = THEIRS) -> Signals:
    targets = {} if group is None else {"group": group}
    batch = Batch({}, targets, torch.arange(PAIRS), {"pairs": PAIRS, "samples": PAIRS})
    return Signals(model(0, SCALE, learns=True), model(7, TEACHER_SCALE, width), batch)


def gradients(value: Tensor, given: Signals) -> dict[str, Tensor]:
    """By the student's embeddings and numbers, zeros where the value does not depend on one."""
    leaves = {**given.student.embeddings, **given.student.scalars}
    found = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def equal(given: Signals, ours: Tensor, other: Tensor) -> None:
    """Value and every gradient."""
    torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(ours, given), gradients(other, given), rtol=1e-10, atol=1e-13)


# --- against open_clip ---


@pytest.mark.parametrize("local", [False, True])
def test_contrastive_is_clips(local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "_BLOCK", 3)  # blocks of 3, 3 and 1
    given = signals()
    image, text = given.student.embeddings.values()
    theirs = open_clip.loss.ClipLoss()(image, text, given.student.scalars["scale"])
    equal(given, Contrastive(local_loss=local).build()(given).sum / PAIRS, theirs)


def test_sigmoid_is_siglips() -> None:
    given = signals()
    theirs = open_clip.loss.SigLipLoss()(
        given.student.embeddings["image"],
        given.student.embeddings["text"],
        given.student.scalars["scale"],
        given.student.scalars["bias"],
    )
    equal(given, Sigmoid().build()(given).sum / PAIRS, theirs)


def test_affinity_is_what_open_clip_distils_by() -> None:
    """With a teacher of another width and another scale."""
    given = signals()
    image, text = given.student.embeddings.values()
    taught = given.taught
    theirs = open_clip.loss.DistillClipLoss()(
        image,
        text,
        given.student.scalars["scale"],
        *taught.embeddings.values(),
        taught.scalars["scale"],
        output_dict=True,
    )
    equal(given, Affinity().build()(given).sum / PAIRS, theirs["distill_loss"])


def test_affinity_is_least_for_the_teachers_own_similarities() -> None:
    """There it is the teacher's entropy, and its gradients are none."""
    given = signals()
    taught = given.taught
    given.student.embeddings = {name: x.clone().requires_grad_() for name, x in taught.embeddings.items()}
    given.student.scalars = {"scale": taught.scalars["scale"].clone().requires_grad_()}
    value = Affinity().build()(given).sum
    logits = TEACHER_SCALE * taught.embeddings["image"] @ taught.embeddings["text"].mT
    entropies = [torch.distributions.Categorical(logits=x).entropy().sum() for x in (logits, logits.mT)]
    torch.testing.assert_close(value, sum(entropies) / 2)
    assert all(grad.abs().max() < 1e-9 for grad in gradients(value, given).values())


# --- captions of one image ---


@pytest.mark.parametrize("local", [False, True])
def test_contrastive_leaves_out_other_captions_of_an_image(
    local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "_BLOCK", 3)
    given = signals(GROUP)
    logits = SCALE * given.student.embeddings["image"] @ given.student.embeddings["text"].mT
    nats = number(0.0)
    for i in range(PAIRS):
        others = [j for j in range(PAIRS) if j == i or GROUP[j] != GROUP[i]]
        nats = nats - logits[i, i] + torch.logsumexp(logits[i, others], 0) / 2
        nats = nats + torch.logsumexp(logits[others, i], 0) / 2
    ours = Contrastive(local_loss=local).build()(given)
    torch.testing.assert_close(ours.sum, nats)
    assert ours.sum < Contrastive().build()(signals()).sum, "fewer wrong answers"


def test_sigmoid_leaves_out_other_captions_of_an_image() -> None:
    given = signals(GROUP)
    logits = SCALE * given.student.embeddings["image"] @ given.student.embeddings["text"].mT + BIAS
    nats = sum(
        -F.logsigmoid(logits[i, j] if i == j else -logits[i, j])
        for i in range(PAIRS)
        for j in range(PAIRS)
        if i == j or GROUP[i] != GROUP[j]
    )
    torch.testing.assert_close(Sigmoid().build()(given).sum, nats)


@pytest.mark.parametrize("config", COUPLED, ids=named)
def test_groups_of_one_are_no_groups(config: Any) -> None:
    given, plain = signals(torch.arange(PAIRS) * 3), signals()
    torch.testing.assert_close(config.build()(given).sum, config.build()(plain).sum, rtol=0, atol=0)


# --- cosine ---


def test_embedding_cosine_of_one_tower_and_of_both() -> None:
    given = signals(width=WIDTH)
    ways = {
        tower: (
            1 - F.cosine_similarity(given.student.embeddings[tower], given.taught.embeddings[tower])
        ).sum()
        for tower in ("image", "text")
    }
    for tower, wanted in ways.items():
        equal(given, EmbeddingCosine(tower=tower).build()(given).sum, wanted)
    equal(given, EmbeddingCosine().build()(given).sum, ways["image"] + ways["text"])


def test_embedding_cosine_does_not_care_for_length() -> None:
    given = signals(width=WIDTH)
    before = EmbeddingCosine().build()(given).sum
    given.student.embeddings = {name: 3 * x for name, x in given.student.embeddings.items()}
    given.taught.embeddings = {name: x / 7 for name, x in given.taught.embeddings.items()}
    torch.testing.assert_close(EmbeddingCosine().build()(given).sum, before)


def test_embedding_cosine_of_images_alone() -> None:
    """A conversion without captions: the text tower is not run, and both name what both have."""
    given = signals(width=WIDTH)
    wanted = EmbeddingCosine(tower="image").build()(given).sum
    del given.student.embeddings["text"], given.taught.embeddings["text"]
    torch.testing.assert_close(EmbeddingCosine().build()(given).sum, wanted)


# --- a step of several batches ---


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("config", COUPLED, ids=named)
def test_divided_and_whole_are_one(config: Any, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uneven micro-batches, whose groups cross their borders; numbers get their gradients once."""
    monkeypatch.setattr(contrastive, "_BLOCK", 2)
    given, loss = signals(GROUP if grouped else None), config.build()
    whole = loss(given).sum
    wanted = gradients(whole, given)
    parts = (slice(0, 1), slice(1, 4), slice(4, 7))
    bank = {**given.student.embeddings, **{f"teacher/{n}": x for n, x in given.taught.embeddings.items()}}
    bank |= {"group": GROUP} if grouped else {}
    numbers = {**given.student.scalars, **{f"teacher/{n}": x for n, x in given.taught.scalars.items()}}
    banks = [{name: x[part] for name, x in bank.items()} for part in parts]
    with torch.no_grad():
        shares = couple(loss, banks, numbers, range(3), 3, first=True)
    total = number(0.0)
    for share, part in zip(shares, parts, strict=True):
        cut = {name: x[part] for name, x in given.student.embeddings.items()}
        total = (
            total + share.term(Signals(Output({}, None, cut, given.student.scalars), None, given.batch)).sum
        )
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(total, given), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("config", COUPLED, ids=named)
def test_the_order_in_a_batch_does_not_matter(config: Any) -> None:
    given, shuffled = signals(GROUP), torch.randperm(PAIRS, generator=torch.Generator().manual_seed(3))
    before = config.build()(given).sum
    for output in (given.student, given.taught):
        output.embeddings = {name: x[shuffled] for name, x in output.embeddings.items()}
    given.batch.targets["group"] = GROUP[shuffled]  # type: ignore[index]
    torch.testing.assert_close(config.build()(given).sum, before)


# --- numbers ---


@pytest.mark.parametrize("config", EVERY, ids=named)
def test_computed_in_float32_under_autocast(config: Any) -> None:
    given = signals(width=WIDTH)
    exact = float(config.build()(given).sum.detach())
    for output in (given.student, given.taught):
        output.embeddings = {name: x.detach().float() for name, x in output.embeddings.items()}
        output.scalars = {name: x.detach().float() for name, x in output.scalars.items()}
    with torch.autocast("cpu", torch.bfloat16):
        term = config.build()(given)
    assert term.sum.dtype == torch.float32
    assert float(term.sum.detach()) == pytest.approx(exact, rel=1e-5)


def test_knowing_nothing_is_log_n() -> None:
    given = signals()
    given.student.embeddings = {"image": torch.ones(PAIRS, 3), "text": torch.ones(PAIRS, 3)}
    assert float(Contrastive().build()(given).sum.detach()) == pytest.approx(PAIRS * math.log(PAIRS))


def test_items() -> None:
    """Pairs where the batch counts them; a cosine counts rows."""
    batch, images = signals().batch, Batch({}, {}, torch.arange(2), {"samples": 2})
    for config in COUPLED:
        assert (config.build().item(batch), config.build().item(images)) == ("pairs", "samples")
    assert EmbeddingCosine().build().item(batch) == "samples"


# --- what is refused ---


@pytest.mark.parametrize(
    ("config", "who", "name"),
    [
        (Contrastive(), "student", "scale"),
        (Sigmoid(), "student", "scale"),
        (Sigmoid(), "student", "bias"),
        (Affinity(), "student", "scale"),
        (Affinity(), "teacher", "scale"),
    ],
)
def test_a_missing_number_is_named(config: Any, who: str, name: str) -> None:
    given = signals()
    output = given.student if who == "student" else given.taught
    del output.scalars[name]
    (left,) = output.scalars
    message = rf"^loss {config.name} reads the number '{name}' of the {who}, which has {left}; give [^\n]*$"
    with pytest.raises(UserError, match=message):
        config.build()(given)


@pytest.mark.parametrize("config", EVERY, ids=named)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_missing_embedding_is_named(config: Any, tower: str) -> None:
    given = signals(width=WIDTH)
    del given.student.embeddings[tower]
    (left,) = given.student.embeddings
    config = EmbeddingCosine(tower=tower) if isinstance(config, EmbeddingCosine) else config  # type: ignore[arg-type]
    message = rf"^loss {config.name} reads the {tower} embedding of the student, which gives {left}; [^\n]*$"
    with pytest.raises(UserError, match=message):
        config.build()(given)


def test_other_refusals() -> None:
    given = signals()
    with pytest.raises(UserError, match=r"image embedding is 5 wide, the teacher's 8; .* use affinity"):
        EmbeddingCosine().build()(given)
    given.student.embeddings["text"] = rows(1, count=3)
    with pytest.raises(UserError, match="one text an image, the batch has 7 images and 3 texts; repeat"):
        Contrastive().build()(given)
    given.student.embeddings = {}
    with pytest.raises(UserError, match="the student embeds nothing and the teacher image, text"):
        EmbeddingCosine().build()(given)
    for config in (Contrastive, Sigmoid, Affinity, EmbeddingCosine):
        with pytest.raises(ValueError, match="weight is -1"):
            config(weight=-1)
