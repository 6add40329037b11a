"""One optimizer step: what it divides by, and losses that have no items in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode

from transmamba.config.registry import LOSSES
from transmamba.core.batch import Batch
from transmamba.core.output import Term
from transmamba.data.hashing import hash64
from transmamba.distillation.distiller import Distiller, weighted
from transmamba.distillation.signals import Loss, Signals
from transmamba.training.log_window import Window
from transmamba.training.seeding import seed_generators
from transmamba.training.step import Stepper
from transmamba.training.strategies import Plain


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Squared sum of the logits of the rows that ask for something: targets of at least 0."""

    name = "answers"
    weight: float = 0.5

    def build(self, geometry: Any) -> Loss:
        return AnswersLoss(self.weight)


class AnswersLoss(Loss):
    needs_teacher = False
    reads_logits = True

    def item(self, batch: Batch) -> str:
        return "answers"

    def forward(self, signals: Signals) -> Term:
        assert signals.student.logits is not None
        rows = signals.student.logits().square().sum(dim=1)
        asked = signals.batch.targets["answers"] >= 0
        return Term((rows * asked).sum(), rows.detach().mean()[None] * asked.sum())

    def part_names(self) -> list[str]:
        return ["all"]


def asking(size: int, asked: int, seed: int = 0) -> Batch:
    """A batch of which so many rows ask for something."""
    batch = harness.tiny_batch(size, seed)
    targets = {**batch.targets, "answers": torch.where(torch.arange(size) < asked, 1, -100)}
    return replace(batch, targets=targets, counts={"samples": size, "answers": asked})


def stepper_of(losses: list[Any], watch: Callable[[Distiller], None]) -> Stepper:
    """Before it moves, `watch` sees the gradients."""
    accelerator = Accelerator(cpu=True)
    distiller = Distiller(harness.tiny_student(), harness.tiny_teacher(), losses).eval()
    optimizer = torch.optim.SGD([p for p in distiller.parameters() if p.requires_grad], lr=0.0)
    strategy = Plain(accelerator)
    strategy.prepare(distiller, lambda _: optimizer)
    stepper = Stepper(strategy, seed=0, change=lambda batch, _: batch)
    move = stepper._apply

    def watched(*arguments: Any) -> bool:
        watch(distiller)
        return move(*arguments)

    stepper._apply = watched  # type: ignore[method-assign]
    return stepper


def gradients_of(losses: list[Any], micro: list[Batch]) -> tuple[Any, dict[str, Tensor | None]]:
    found: dict[str, Tensor | None] = {}

    def watch(distiller: Distiller) -> None:
        found.update({n: None if p.grad is None else p.grad.clone() for n, p in distiller.named_parameters()})

    return stepper_of(losses, watch).step(micro, 0), found


def test_each_loss_is_divided_by_its_own_count() -> None:
    """By the count of the whole step, not of each micro-batch; items are added up by kind."""
    micro = [asking(3, asked=1, seed=0), asking(5, asked=4, seed=1)]
    done, found = gradients_of([LOSSES["cross_entropy"](), Answers()], micro)
    assert done.items == {"samples": 8, "answers": 5} and done.moved and not done.stop
    distiller = Distiller(harness.tiny_student(), None, (LOSSES["cross_entropy"](), Answers())).eval()
    terms = [distiller(batch) for batch in micro]
    sums = {name: terms[0][name].sum + terms[1][name].sum for name in terms[0]}
    total = sums["cross_entropy"] / 8 + 0.5 * sums["answers"] / 5
    total.backward()
    assert done.total == pytest.approx(float(total.detach()), rel=1e-5)
    assert done.means == pytest.approx(
        {"cross_entropy": sums["cross_entropy"].item() / 8, "answers": sums["answers"].item() / 5}, rel=1e-5
    )
    assert terms[0]["answers"].parts is not None and terms[1]["answers"].parts is not None
    torch.testing.assert_close(
        done.parts["answers"], (terms[0]["answers"].parts + terms[1]["answers"].parts) / 5
    )
    for name, parameter in distiller.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)


class Told(Tensor):
    """What the host has been told, and what it makes of it."""


class OneMessage(TorchFunctionMode):
    """A tensor is read on the host only where it was sent there."""

    READ = (Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__)

    def __init__(self) -> None:
        super().__init__()
        self.messages = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in self.READ or isinstance(args[0], Told), (
            f"{function.__name__} waits for the GPU"
        )
        assert function is not Tensor.new_tensor, "what is copied from the host waits for the GPU"
        made = function(*args, **(kwargs or {}))
        if function is Tensor.cpu:
            self.messages += 1
            return made.as_subclass(Told)
        return made


def test_a_step_waits_once() -> None:
    """For everything that the host is told of it: losses, parts, items, the norm."""
    stepper = stepper_of([LOSSES["cross_entropy"](), Answers()], lambda _: None)
    micro = [asking(3, asked=1, seed=0), asking(5, asked=4, seed=1)]
    wanted = stepper.step(micro, 0)
    with OneMessage() as watch:
        found = stepper.step(micro, 0)
    assert watch.messages == 1 and wanted.norm > 0
    assert (found.means, found.norm, found.items) == (wanted.means, wanted.norm, wanted.items)
    assert isinstance(found.norm, float) and not found.stop
    assert stepper.step(micro, 0, lambda: True).stop


def test_what_a_step_draws_follows_from_its_number() -> None:
    """Wherever the generator was: each micro-batch begins at a seed of its own."""
    stepper, seen = stepper_of([LOSSES["cross_entropy"]()], lambda _: None), []

    def change(batch: Batch, seed: int) -> Batch:
        seen.append((seed, torch.rand(3)))
        return batch

    stepper.change = change
    for number in (5, 6):
        stepper.step([asking(3, asked=1), asking(3, asked=1)], number)
    assert [seed for seed, _ in seen] == [
        int(hash64(0, number, place, 0)[0] >> 1) for number in (5, 6) for place in (0, 1)
    ]
    for seed, drawn in seen:
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(3), drawn)


def test_generators_are_seeded_as_torch_does_it() -> None:
    torch.manual_seed(2**63 - 25)
    wanted = torch.rand(3)
    seed_generators(2**63 - 25, torch.device("cpu"))
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="seeds a GPU's generator")
def test_a_gpu_s_generator_is_seeded_as_torch_does_it() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3, device="cuda")
    seed_generators(7, torch.device("cuda"))
    assert torch.equal(torch.rand(3, device="cuda"), wanted)


def test_a_loss_without_items_is_left_out() -> None:
    """Of the means, of the parts, of the total and of the gradients; alone, it leaves gradients of 0."""
    losses = [LOSSES["cross_entropy"](), Answers()]
    done, found = gradients_of(losses, [asking(4, asked=0)])
    alone, wanted = gradients_of(losses[:1], [asking(4, asked=0)])
    assert done.means.keys() == {"cross_entropy"} and done.parts == {}
    assert done.items == {"samples": 4, "answers": 0}
    assert done.total == alone.total and done.norm == alone.norm
    for name, gradient in wanted.items():
        assert (gradient is None) == (found[name] is None)
        assert gradient is None or torch.equal(gradient, found[name])  # type: ignore[arg-type]
    nothing, zeros = gradients_of(losses[1:], [asking(4, asked=0), asking(4, asked=0)])
    assert nothing.means == {} and nothing.total == 0 and nothing.norm == 0 and nothing.moved
    student = {name: gradient for name, gradient in zeros.items() if name.startswith("student.")}
    assert all(gradient is not None and not gradient.any() for gradient in student.values())


@pytest.mark.parametrize("count", [0, 5])
def test_weighted_by_hand(count: int) -> None:
    """Zero times its graph where it has no items, however large its sum is."""
    a, b = (torch.tensor(value, requires_grad=True) for value in (3.0, 1e30))
    counts = torch.tensor([4.0, count, 99.0], dtype=torch.float64)
    loss = weighted({"b": Term(b * 2), "a": Term(a * 2)}, {"a": 0.5, "b": 3.0}, counts)
    loss.backward()
    assert a.grad is not None and b.grad is not None and loss.dtype == torch.float32
    assert float(a.grad) == 0.5 * 2 / 4 and float(b.grad) == pytest.approx(3 * 2 / 5 if count else 0)
    assert float(loss.detach()) == pytest.approx(0.5 * 6 / 4 + (3 * 2e30 / 5 if count else 0))


def test_the_log_averages_over_the_steps_that_had_a_loss() -> None:
    window = Window()
    part = {"answers": torch.tensor([0.4])}
    for means, parts, total, tokens in (
        ({"ce": 1.0, "answers": 6.0}, part, 4.0, 90),
        ({"ce": 3.0}, {}, 3.0, 10),
    ):
        items = {"samples": 8, "tokens": tokens}
        window.add(means, parts, total, items, seconds=1.0, waited=0.5, norm=1.0)
    for held in (window, Window.restored(window.saved())):
        assert held.means() == {"loss": 3.5, "loss/ce": 2.0, "loss/answers": 6.0}
        torch.testing.assert_close(held.part_means(), part)
        assert held.steps == 2
        assert held.rates() == {"samples_per_second": 8.0, "tokens_per_second": 50.0}
    assert Window.restored({}) == Window()


# --- several ranks ----------------------------------------------------------------------------------------

# rows, and those that ask, of each rank's micro-batches
RANKS = {"one has none": [[(3, 2)], [(3, 0)]], "none has any": [[(3, 0)], [(3, 0)]]}


def in_rank(case: str, folder: Path) -> None:
    rank = int(os.environ["RANK"])
    micro = [asking(*sizes, seed=10 * rank + m) for m, sizes in enumerate(RANKS[case][rank])]
    done, found = gradients_of([Answers()], micro)
    found = {name: gradient for name, gradient in found.items() if name.startswith("student.")}
    assert all(gradient is not None for gradient in found.values()), "every rank has every gradient"
    torch.save({"means": done.means, "gradients": found, "items": done.items}, folder / f"{rank}.pt")


@pytest.mark.parametrize("case", RANKS)
def test_ranks_without_items(case: str, tmp_path: Path) -> None:
    """They take part all the same, and both have what one process would have with all the rows."""
    harness.in_ranks(2, in_rank, case, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["means"] == second["means"] and first["items"] == second["items"]
    micro = [
        asking(*sizes, seed=10 * r + m) for r, all_ in enumerate(RANKS[case]) for m, sizes in enumerate(all_)
    ]
    done, whole = gradients_of([Answers()], micro)
    assert first["items"] == done.items and first["means"] == pytest.approx(done.means, rel=1e-5)
    for name, gradient in first["gradients"].items():
        assert torch.equal(gradient, second["gradients"][name])
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-7)
