"""Steps recorded as CUDA graphs. What can't run without a GPU is recording itself: a stand-in for it runs the
body again, on the tensors it was recorded with, and checks what a graph takes for granted."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import harness
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from transmamba.config import load as configs
from transmamba.core.batch import Batch
from transmamba.core.output import Term
from transmamba.distillation.distiller import Distiller
from transmamba.errors import UserError
from transmamba.runs.recipe import Recipe
from transmamba.runs.run import run
from transmamba.tasks.in_context import InContext
from transmamba.training import cuda_graph
from transmamba.training.stage import TrainerConfig
from transmamba.training.trainer import Trainer


class NothingFromPython(TorchFunctionMode):
    """What a recording would freeze, or what would wait for the GPU: numbers and lists made into tensors,
    tensors made into numbers."""

    MADE = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)
    READ = (Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.__bool__, Tensor.__float__, Tensor.__int__)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in (*self.MADE, *self.READ), f"{function.__name__} in a recording"
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(i, list) for i in index), "indexed by a list in a recording"
        return function(*args, **(kwargs or {}))


class StandIn:
    """A recording without a GPU."""

    made: ClassVar[list[StandIn]] = []
    gradients: ClassVar[Callable[[], dict[Any, int]]] = dict
    replaying: ClassVar[bool] = False

    def __init__(self, body: Any, inputs: Any, constants: Any) -> None:
        assert not StandIn.alive(), "a step's autograd graph outlives it"
        self.body, self.constants = body, constants
        self.inputs = [None if x is None else x.clone() for x in inputs]
        self.replays = 0
        self.addresses = StandIn.gradients()
        StandIn.made.append(self)

    def __call__(self, *inputs: Any) -> Any:
        assert StandIn.gradients() == self.addresses, "a graph adds to the gradients it was recorded with"
        for held, new in zip(self.inputs, inputs, strict=True):
            if held is not None:
                held.copy_(new)
        self.replays += 1
        StandIn.replaying = True
        try:
            with NothingFromPython():
                return self.body(*self.inputs, self.constants)
        finally:
            StandIn.replaying = False

    @staticmethod
    def alive() -> bool:
        """Whether a tensor that somebody holds still leads to a parameter's gradient."""
        gc.collect()
        found = [x for x in gc.get_objects() if issubclass(type(x), Term) and x.sum.grad_fn is not None]
        return bool(found)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """Recordings are stand-ins, that know where the gradients lie, and see no token drawn."""
    monkeypatch.setattr(StandIn, "made", [])
    monkeypatch.setattr(StandIn, "gradients", dict)
    monkeypatch.setattr(cuda_graph, "Recording", StandIn)
    make = Trainer._stepper

    def graphing(self: Trainer, *arguments: Any) -> Any:
        """As on a GPU."""
        stepper = make(self, *arguments)
        if self.config.cuda_graphs:
            stepper.graphed = cuda_graph.GraphedStep(stepper._graph_body, stepper.distiller.parameters())
        return stepper

    monkeypatch.setattr(Trainer, "_stepper", graphing)
    begin, draw = cuda_graph.GraphedStep.__init__, Distiller.draw_tokens

    def begun(self: Any, body: Any, parameters: Any) -> None:
        parameters = list(parameters)
        begin(self, body, parameters)
        StandIn.gradients = lambda: {
            i: 0 if p.grad is None else p.grad.data_ptr() for i, p in enumerate(parameters)
        }

    def drawn(self: Distiller, *arguments: Any) -> Any:
        found = draw(self, *arguments)
        assert not StandIn.replaying, "tokens drawn in a recording are drawn once"
        return found

    monkeypatch.setattr(cuda_graph.GraphedStep, "__init__", begun)
    monkeypatch.setattr(Distiller, "draw_tokens", drawn)
    return StandIn


@pytest.mark.parametrize(
    ("accumulation", "student"),
    [
        (2, "full method"),  # of a vim
        (4, "vim"),  # recorded within its first step
        (1, "ssd_vit"),
        pytest.param(1, "hybrid", marks=pytest.mark.slow),
        *[pytest.param(accumulation, "vim", marks=pytest.mark.slow) for accumulation in (1, 2, 6)],
    ],
)
def test_a_recorded_run_is_the_run(
    tmp_path: Path, stand_in: type[StandIn], accumulation: int, student: str
) -> None:
    """Weights and log bit for bit, through both stages, drawn tokens and drop path included."""
    changes: dict[str, Any] = {}
    if student == "full method":
        changes = dict(harness.FULL_METHOD)
    elif student != "vim":
        layers = [0] if student == "hybrid" else []
        changes["student"] = dict(name="ssd_vit", attention_layers=layers, kwargs=dict(drop_path_rate=0.1))
    for name, graphs in (("plain", False), ("graphs", True)):
        recipe = harness.tiny_recipe(
            tmp_path,
            output_dir=str(tmp_path / name),
            trainer__cuda_graphs=graphs,
            trainer__global_batch=4 * accumulation,
            **changes,
        )
        harness.run_quietly(recipe)
    plain, graphed = (load_file(tmp_path / n / "student" / "model.safetensors") for n in ("plain", "graphs"))
    assert all(torch.equal(plain[key], graphed[key]) for key in plain)
    assert harness.metrics_rows(tmp_path / "plain") == harness.metrics_rows(tmp_path / "graphs")
    assert [r.replays for r in stand_in.made] == [5 * accumulation - 3, 8 * accumulation - 3]


def in_context(folder: Path, function: dict[str, Any], graphs: bool, **changes: Any) -> Recipe:
    """A small model that learns functions in context; dropout draws from the default generator."""
    values: dict[str, Any] = dict(
        output_dir=str(folder / ("graphs" if graphs else "plain")),
        task=dict(
            name="in_context",
            function=function,
            mixed=[dict(name="sparse_parity", d=4, points=4)],
            curriculum=dict(points=dict(start=2, step=1, every=3)),
            prompts=8,
        ),
        student=dict(name="sequence", pattern="M(AS)", width=8, heads=2, dropout=0.2, mixer="mamba2", conv=2),
        stages=[dict(losses=["prediction"], steps=5, lr=3e-3), dict(losses=["prediction"], steps=4)],
        trainer=dict(dict(global_batch=6, log_every=1, save_every=0, cuda_graphs=graphs), **changes),
    )
    return configs.parse(Recipe, values, "recipe")


@pytest.mark.parametrize(
    ("function", "micro_batch"),
    [
        (dict(name="mqar", d=4, pairs=3, queries=2), 6),
        (dict(name="many_outlier", d=3, points=5, share=0.4), 3),  # not whole turns of the two functions
    ],
)
def test_prompts_are_made_in_the_recording(
    tmp_path: Path,
    stand_in: type[StandIn],
    monkeypatch: pytest.MonkeyPatch,
    function: dict[str, Any],
    micro_batch: int,
) -> None:
    """Weights and log bit for bit, under a growing curriculum; rows come in as their numbers."""
    change, outside = InContext.change, [0]

    def counted(self: InContext, batch: Batch, seed: int) -> Batch:
        outside[0] += not StandIn.replaying
        return change(self, batch, seed)

    monkeypatch.setattr(InContext, "change", counted)
    for graphs in (False, True):
        outside[0] = 0
        run(in_context(tmp_path, function, graphs, micro_batch=micro_batch), quiet=True)
    plain, graphed = (load_file(tmp_path / n / "student" / "model.safetensors") for n in ("plain", "graphs"))
    assert all(torch.equal(plain[key], graphed[key]) for key in plain)
    one, other = (harness.without_timing(harness.metrics_rows(tmp_path / n)) for n in ("plain", "graphs"))
    assert one == other and len(one) >= 9
    micro = 6 // micro_batch
    assert [r.replays for r in stand_in.made] == [5 * micro - 3, 4 * micro - 3]
    assert [[tuple(x.shape) for x in r.inputs[:2] if x is not None] for r in stand_in.made] == [
        [(micro_batch, 6), (micro_batch,)]
    ] * 2
    assert outside[0] == 2 * cuda_graph.WARMUP, "before there is a recording"


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)


def steps(graphed: bool, shapes: list[int], device: str = "cpu") -> dict[str, torch.Tensor]:
    """AdamW with weight decay on the sums of outputs, two micro-batches a step."""
    torch.manual_seed(0)
    model = Two().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)

    def body(x: torch.Tensor, scale: float) -> torch.Tensor:
        loss = (torch.nn.functional.dropout(model.used(x), 0.5) * scale).square().mean()
        loss.backward()
        return loss.detach()

    run: Any = cuda_graph.GraphedStep(body, model.parameters()) if graphed else body
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


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (
            ValueError("not permitted when stream is capturing\nmore"),
            r"\(ValueError: not permitted .* capturing\)",
        ),
        (AssertionError(), r"\(AssertionError:\)"),
    ],
)
def test_what_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch, cause: Exception, said: str) -> None:
    """One line with what failed first, not with the error that ended the recording."""

    def refuse(*_: Any) -> Any:
        try:
            raise cause
        except Exception:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904

    monkeypatch.setattr(cuda_graph, "Recording", refuse)
    weight = nn.Parameter(torch.ones(2))
    run = cuda_graph.GraphedStep(lambda x, _: (weight * x).sum().backward(), [weight])
    for _ in range(cuda_graph.WARMUP):
        run(torch.ones(2))
    with pytest.raises(UserError, match=said + "; write false for it") as caught:
        run(torch.ones(2))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records a CUDA graph")
def test_a_graph_on_the_gpu() -> None:
    plain, graphed = steps(False, SHAPES, "cuda"), steps(True, SHAPES, "cuda")
    for name in plain:
        torch.testing.assert_close(graphed[name], plain[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("clash", "instead"),
    [
        (dict(precision="fp16"), "precision bf16, tf32 or no"),
        (dict(grad_checkpointing=True), "grad_checkpointing false"),
        (
            dict(precision="fp16", grad_checkpointing=True),
            "precision bf16, tf32 or no and grad_checkpointing false",
        ),
    ],
)
def test_what_rules_it_out(clash: dict[str, Any], instead: str) -> None:
    with pytest.raises(ValueError, match=f"cuda_graphs is true; write {instead}, or cuda_graphs false"):
        TrainerConfig(cuda_graphs=True, **clash)
