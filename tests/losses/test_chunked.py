"""KL and cross-entropy over a vocabulary, chunk by chunk, against all logits at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transmamba.core.batch import Batch
from transmamba.core.output import Logits, Output
from transmamba.distillation.signals import Signals
from transmamba.errors import UserError
from transmamba.losses.cross_entropy import CrossEntropy
from transmamba.losses.kl import KL

ROWS, LENGTH, WIDTH, THEIRS, WORDS = 4, 16, 6, 5, 40
LOSSES: dict[str, Callable[[int], Any]] = {
    "kl": lambda chunk: KL(temperature=1.5, chunk=chunk),
    "cross_entropy": lambda chunk: CrossEntropy(chunk=chunk),
    "smoothed": lambda chunk: CrossEntropy(label_smoothing=0.1, chunk=chunk),
}


class Model(nn.Module):
    """Words in, their next ones out: the head is a norm, then the embedding (tied) or a matrix of its own."""

    def __init__(self, width: int, words: int = WORDS, *, tied: bool = True) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(words, width), nn.Linear(width, width)
        self.norm, self.out = nn.RMSNorm(width), None if tied else nn.Linear(width, words)

    def head(self, hidden: Tensor) -> Tensor:
        x = self.norm(hidden)
        return F.linear(x, self.embed.weight) if self.out is None else self.out(x)

    def forward(self, text: Tensor) -> Output:
        x = self.embed(text)
        return Output(logits=Logits(x + torch.tanh(self.body(x)), self.head))


def models(dtype: torch.dtype, tied: bool, words: int = WORDS) -> tuple[Model, Model]:
    torch.manual_seed(0)
    return Model(WIDTH, words, tied=tied).to(dtype), Model(THEIRS, words).to(dtype)


def batch_of(asked: float = 0.7, seed: int = 1) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    text = torch.randint(WORDS, (ROWS, LENGTH), generator=draw)
    mask = torch.arange(LENGTH) < torch.tensor([LENGTH, 9, 12, 3])[:, None]
    targets = text.roll(-1, 1).where(mask & (torch.rand(text.shape, generator=draw) < asked), -100)
    counts = {"samples": ROWS, "tokens": int(mask.sum()), "answers": int((targets >= 0).sum())}
    return Batch({"text": text, "text_mask": mask}, {"tokens": targets}, torch.arange(ROWS), counts)


def signals(student: Model, teacher: Model, batch: Batch) -> Signals:
    with torch.no_grad():
        taught = teacher(batch.inputs["text"])
        taught.logits.head = torch.no_grad()(taught.logits.head)
    return Signals(student(batch.inputs["text"]), taught, batch)


def plain(name: str, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """All logits of both, then the formula."""
    targets = batch.targets["tokens"].flatten()
    made = student(batch.inputs["text"]).logits().flatten(0, 1)
    if name != "kl":
        smoothing = 0.1 if name == "smoothed" else 0.0
        return F.cross_entropy(made, targets, reduction="sum", label_smoothing=smoothing)
    with torch.no_grad():
        wanted = teacher(batch.inputs["text"]).logits().flatten(0, 1)
    p, q = (wanted / 1.5).softmax(-1), (made / 1.5).softmax(-1)
    return 1.5**2 * (p * (p.log() - q.log())).sum(-1)[targets >= 0].sum()


def said(logits: Tensor) -> Any:
    """A model that says this whatever it reads."""
    return lambda text: Output(logits=Logits(logits, lambda x: x))


def gradients(loss: Tensor, student: Model) -> dict[str, Tensor]:
    student.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_are_the_plain_ones(name: str, chunk: int, dtype: torch.dtype, tied: bool) -> None:
    (student, teacher), batch = models(dtype, tied), batch_of()
    expected = plain(name, student, teacher, batch)
    wanted = gradients(expected * 0.3, student)
    term = LOSSES[name](chunk).build()(signals(student, teacher, batch))
    found = gradients(term.sum * 0.3, student)
    assert term.sum.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(term.sum, expected, rtol=tolerance, atol=tolerance)
    assert found.keys() == wanted.keys() == dict(student.named_parameters()).keys()
    for key, gradient in wanted.items():
        assert (found[key] - gradient).abs().max() <= tolerance * max(1.0, float(gradient.abs().max())), key


class Shapes(TorchDispatchMode):
    """The operations whose results have a shape that follows from numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = any(isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:]))
        name = str(func)
        if "nonzero" in name or "masked_select" in name or ("index.Tensor" in name and masked):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("chunk", [7, 10_000])
@pytest.mark.parametrize("name", LOSSES)
def test_a_recorded_step_looks_at_all_tokens(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes may not follow from numbers there; padding with a target counts for nothing, either."""
    (student, teacher), batch = models(torch.float64, True), batch_of()
    padded = ~batch.inputs["text_mask"]
    batch.targets["tokens"].masked_fill_(padded & (torch.rand(padded.shape) < 0.5), 3)
    given = signals(student, teacher, batch)
    with Shapes() as shapes:
        wanted = LOSSES[name](chunk).build()(given).sum
    assert shapes.found, "asks for single tokens"
    expected = gradients(wanted, student)
    monkeypatch.setattr("transmamba.core.batch.recording", lambda: True)
    given = signals(student, teacher, batch)
    with Shapes() as shapes:
        made = LOSSES[name](chunk).build()(given).sum
    assert not shapes.found
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(made, student), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", ["body", "head"])
def test_only_what_is_trained_gets_a_gradient(part: str) -> None:
    (student, teacher), batch = models(torch.float64, tied=False), batch_of()
    frozen = [student.norm, student.out] if part == "body" else [student.embed, student.body]
    for module in frozen:
        assert module is not None
        module.requires_grad_(False)
    wanted = gradients(plain("kl", student, teacher, batch), student)
    found = gradients(KL(temperature=1.5, chunk=5).build()(signals(student, teacher, batch)).sum, student)
    assert found.keys() == wanted.keys() and len(found) == 3
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast_the_softmax_is_in_float32(name: str) -> None:
    """As plain logits in bfloat16 through the same formula in float32."""
    (student, teacher), batch = models(torch.float32, True), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        given = signals(student, teacher, batch)
        term = LOSSES[name](7).build()(given)
        made = student(batch.inputs["text"]).logits()
        assert made.dtype == torch.bfloat16 and term.sum.dtype == torch.float32
    found = gradients(term.sum, student)
    with torch.autocast("cpu", torch.bfloat16):
        made, wanted = (model(batch.inputs["text"]).logits().float() for model in (student, teacher))
    expected = plain(name, said(made), said(wanted), batch)
    torch.testing.assert_close(term.sum, expected, rtol=1e-5, atol=1e-5)
    for key, gradient in gradients(expected, student).items():
        # each chunk's gradient of a weight is rounded by itself
        assert (found[key] - gradient).norm() <= 0.02 * gradient.norm(), key


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_asked_is_zero_with_a_gradient_for_everything(name: str) -> None:
    """So that every process has the same gradients."""
    (student, teacher), batch = models(torch.float32, False), batch_of(asked=0.0)
    term = LOSSES[name](7).build()(signals(student, teacher, batch))
    found = gradients(term.sum, student)
    assert float(term.sum.detach()) == 0
    assert found.keys() == dict(student.named_parameters()).keys()
    assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("name", LOSSES)
def test_padding_never_enters(name: str) -> None:
    """Not even as a product with 0: what a model makes of padding need not be finite."""
    (student, teacher), batch = models(torch.float64, True), batch_of()
    expected = plain(name, student, teacher, batch).detach()
    given = signals(student, teacher, batch)
    for output in (given.student, given.taught):
        assert output.logits is not None
        hole = torch.where(batch.inputs["text_mask"], 0.0, torch.nan)[..., None]
        output.logits = Logits(output.logits.hidden + hole, output.logits.head)
    term = LOSSES[name](7).build()(given)
    torch.testing.assert_close(term.sum.detach(), expected)
    assert all(gradient.isfinite().all() for gradient in gradients(term.sum, student).values())


@pytest.mark.parametrize("name", LOSSES)
def test_without_gradients_it_is_the_same_number(name: str) -> None:
    (student, teacher), batch = models(torch.float64, True), batch_of()
    with torch.no_grad():
        term = LOSSES[name](7).build()(signals(student, teacher, batch))
        torch.testing.assert_close(term.sum, plain(name, student, teacher, batch))


class Sizes(TorchDispatchMode):
    """The largest tensor that anything makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *(leaf.numel() for leaf in tensors)])
        return made


@pytest.mark.parametrize("name", LOSSES)
def test_the_logits_of_all_tokens_never_exist(name: str) -> None:
    words, chunk = 3_000, 8
    (student, teacher), batch = models(torch.float32, True, words), batch_of(asked=1.0)
    answers = batch.counts["answers"]
    assert chunk * words < answers * words / 4 and WIDTH * words <= chunk * words
    with Sizes() as sizes:
        LOSSES[name](chunk).build()(signals(student, teacher, batch)).sum.backward()
    assert sizes.largest == chunk * words
    with Sizes() as sizes:
        plain(name, student, teacher, batch).backward()
    assert sizes.largest >= answers * words, "the measure sees what there is"


def test_vocabularies_of_two_sizes_are_refused() -> None:
    student, _ = models(torch.float32, True)
    teacher = Model(THEIRS, WORDS + 8)
    with pytest.raises(UserError, match="the teacher has 48 and the student 40; write a student with"):
        KL().build()(signals(student, teacher, batch_of()))


@pytest.mark.parametrize("loss", [KL, CrossEntropy])
def test_a_chunk_of_nothing_is_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match="chunk is 0; write a number of tokens, at least 1"):
        loss(chunk=0)
