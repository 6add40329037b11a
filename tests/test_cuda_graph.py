"""Steps recorded as CUDA graphs. What can't run without a GPU is recording itself: a stand-in for it runs the
body again, on the tensors it was recorded with, and checks what a graph takes for granted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import harness
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from transmamba import cuda_graph
from transmamba.recipe import TrainerConfig
from transmamba.trainer import Trainer


class StandIn:
    """A recording without a GPU."""

    made: ClassVar[list[StandIn]] = []
    gradients: ClassVar[Callable[[], dict[Any, int]]] = dict

    def __init__(self, body: Any, inputs: Any, constants: Any) -> None:
        self.body, self.constants = body, constants
        self.inputs = [None if x is None else x.clone() for x in inputs]
        self.replays = 0
        self.addresses = self.gradients()
        StandIn.made.append(self)

    def __call__(self, *inputs: Any) -> Any:
        assert self.gradients() == self.addresses, "a graph adds to the gradients it was recorded with"
        for held, new in zip(self.inputs, inputs, strict=True):
            if held is not None:
                held.copy_(new)
        self.replays += 1
        return self.body(*self.inputs, self.constants)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(StandIn, "made", [])
    monkeypatch.setattr(StandIn, "gradients", dict)
    monkeypatch.setattr(cuda_graph, "Recording", StandIn)
    monkeypatch.setattr(Trainer, "_on_gpu", lambda self: True)
    return StandIn


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_recorded_run_is_the_run(tmp_path: Path, stand_in: type[StandIn], accumulation: int) -> None:
    """Weights and log bit for bit, through both stages, drawn tokens and drop path included."""
    for name, graphs in (("plain", False), ("graphs", True)):
        recipe = harness.tiny_recipe(
            tmp_path,
            output_dir=str(tmp_path / name),
            trainer__cuda_graphs=graphs,
            trainer__accumulation=accumulation,
        )
        harness.run_quietly(recipe)
    plain, graphed = (load_file(tmp_path / n / "student" / "model.safetensors") for n in ("plain", "graphs"))
    assert all(torch.equal(plain[key], graphed[key]) for key in plain)
    assert harness.metrics_rows(tmp_path / "plain") == harness.metrics_rows(tmp_path / "graphs")
    assert [r.replays for r in stand_in.made] == [5 * accumulation - 3, 8 * accumulation - 3]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)


def steps(graphed: bool, shapes: list[int], device: str = "cpu") -> dict[str, torch.Tensor]:
    """AdamW with weight decay on the sums of outputs, two micro-batches a step."""
    torch.manual_seed(0)
    model = Two().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    StandIn.gradients = staticmethod(
        lambda: {n: 0 if p.grad is None else p.grad.data_ptr() for n, p in model.named_parameters()}
    )

    def body(x: torch.Tensor, scale: float) -> torch.Tensor:
        loss = (torch.nn.functional.dropout(model.used(x), 0.5) * scale).square().mean()
        loss.backward()
        return loss.detach()

    run: Any = cuda_graph.GraphedStep(body, model.parameters(), pytest.fail) if graphed else body
    for step, size in enumerate(shapes):
        for micro in range(2):
            torch.manual_seed(100 * step + micro)
            x = torch.randn(size, 3).to(device)
            if graphed:
                run(x, constants=2.0)
            else:
                run(x, 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


SHAPES = [4, 4, 4, 4, 2, 4, 4]


def test_other_shapes_and_idle_parameters(stand_in: type[StandIn]) -> None:
    """A batch of another size runs as it is, into the same gradients; who gets none is left alone."""
    plain, graphed = steps(False, SHAPES), steps(True, SHAPES)
    assert all(torch.equal(plain[name], graphed[name]) for name in plain)
    assert [r.replays for r in stand_in.made] == [2 * 7 - 3 - 2]


def test_what_cannot_be_recorded_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        try:
            raise ValueError("operation not permitted when stream is capturing\nmore")
        except ValueError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904

    monkeypatch.setattr(cuda_graph, "Recording", refuse)
    said: list[str] = []
    weight = nn.Parameter(torch.ones(2))
    run = cuda_graph.GraphedStep(lambda x, _: (weight * x).sum().backward(), [weight], said.append)
    for step in range(8):
        weight.grad = None
        run(torch.full((2,), float(step)))
        assert weight.grad.tolist() == [step, step]  # type: ignore[union-attr]
    assert len(said) == 1 and "ValueError: operation not permitted when stream is capturing);" in said[0]


def test_a_recording_that_was_spoiled_once(stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = iter([True, False])

    def record(*arguments: Any) -> Any:
        if next(spoiled):
            raise RuntimeError("operation failed due to a previous error during capture")
        return StandIn(*arguments)

    monkeypatch.setattr(cuda_graph, "Recording", record)
    plain, graphed = steps(False, SHAPES), steps(True, SHAPES)
    assert all(torch.equal(plain[name], graphed[name]) for name in plain)
    assert [r.replays for r in stand_in.made] == [2 * 7 - 4 - 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records a CUDA graph")
def test_a_graph_on_the_gpu() -> None:
    plain, graphed = steps(False, SHAPES, "cuda"), steps(True, SHAPES, "cuda")
    for name in plain:
        torch.testing.assert_close(graphed[name], plain[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clash", [dict(precision="fp16"), dict(grad_checkpointing=True)])
def test_what_rules_it_out(clash: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"cuda_graphs is true, which .*{next(iter(clash))}"):
        TrainerConfig(cuda_graphs=True, **clash)
