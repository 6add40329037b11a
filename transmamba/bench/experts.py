"""Experts beside one MLP of as much work a token: what the grouping of tokens, and the router, cost.

All kinds are timed in one process, in turns. Tokens and weights are random, so that experts have about as
many tokens each; forward, and forward with backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, WrongValues
from ..evaluation.cost import HALF, autocast, find_device
from ..layers.experts import Experts, ExpertsShape
from ..layers.grouped import OURS
from .step import interleaved

# key -> what a table calls it, its width there, its format
COLUMNS: Mapping[str, tuple[str, int, str]] = {
    "experts": ("experts", 7, "d"),
    "what": ("what", 18, "s"),
    "forward": ("forward ms", 10, ".3f"),
    "backward": ("with backward", 13, ".3f"),
    "throughput": ("of dense", 8, ".2f"),
    "throughput_backward": ("with backward", 13, ".2f"),
}


class _Dense(nn.Module):
    """One MLP of as many neurons as a token's experts have together."""

    def __init__(self, shape: ExpertsShape) -> None:
        super().__init__()
        neurons = shape.neurons * shape.each
        self.gated = shape.gated
        self.up = nn.Linear(shape.width, neurons * (2 if shape.gated else 1), bias=False)
        self.down = nn.Linear(neurons, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        if self.gated:
            gate, up = hidden.chunk(2, dim=-1)
            return self.down(F.silu(gate) * up)
        return self.down(F.relu(hidden))


def bench_experts(
    counts: Sequence[int] = (4, 8, 16, 32),
    *,
    width: int = 512,
    neurons: int = 1536,
    each: int = 1,
    gated: bool = False,
    tokens: int | None = None,
    steps: int = 20,
    device: str | None = None,
    precision: str = "bf16",
    ready: Callable[[], object] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Four rows a number of experts: `dense`, an MLP of each * neurons; `grouped_mm`, the experts alone with
    routing that is given, by transformers' implementation; `grouped products`, the same as the layer runs
    them, on a GPU by our kernels; `with router`, the whole layer. Milliseconds (medians of `steps`) `forward`
    and with `backward`, and both as dense's over them, `throughput`: 1 where grouping costs
    nothing.

    width, neurons, each, gated: as of `layers.experts.ExpertsShape`; experts of several are normalised
    tokens:    of a batch; left out: 65,536 on a GPU, else 1,024
    precision: of autocast: no, bf16, fp16
    ready:     called once, when all sizes are found to be possible and before the first is timed

    Raises UserError for sizes that no experts can have.
    """
    if precision not in ("no", *HALF):
        raise UserError(f"precision is {precision!r}; write no, bf16 or fp16")
    where = find_device(device)
    tokens = (2**16 if where.type == "cuda" else 2**10) if tokens is None else tokens
    for key, value in (("width", width), ("neurons", neurons), ("tokens", tokens), ("steps", steps)):
        if value < 1:
            raise UserError(f"{key} is {value}; write at least 1")
    shapes = []
    for count in counts:
        try:
            shape = ExpertsShape(
                width=width,
                neurons=neurons,
                count=count,
                each=each,
                normalised=each > 1,
                gated=gated,
                act="silu" if gated else "relu",
            )
        except WrongValues as error:
            raise UserError(f"experts {count}: {error}") from error
        shapes.append(shape)
    ready()
    for shape in shapes:
        yield from _of_shape(shape, tokens, steps, where, precision)


def _of_shape(
    shape: ExpertsShape, tokens: int, steps: int, device: torch.device, precision: str
) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    layer, dense = Experts(shape).to(device), _Dense(shape).to(device)
    x = torch.randn(1, tokens, shape.width, device=device)
    with torch.no_grad():
        _, routed = layer(x)
    given = routed.chosen.flatten(0, 1), routed.weights.flatten(0, 1)

    def products(name: str, x: Tensor) -> Tensor:
        layer.implement(name)
        try:
            return layer.products(x.flatten(0, 1), *given)
        finally:
            layer.implement(OURS)

    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "dense": dense,
        "grouped_mm": lambda x: products("grouped_mm", x),
        "grouped products": lambda x: products(OURS, x),
        "with router": lambda x: layer(x)[0],
    }
    runs = {
        (what, backward): _run(kind, x, precision, backward)
        for what, kind in kinds.items()
        for backward in (False, True)
    }
    seconds = interleaved({str(key): run for key, run in runs.items()}, steps, device)
    times = {key: seconds[str(key)] for key in runs}
    return [
        {
            "experts": shape.count,
            "what": what,
            "tokens": tokens,
            "forward": 1000 * times[what, False],
            "backward": 1000 * times[what, True],
            "throughput": times["dense", False] / times[what, False],
            "throughput_backward": times["dense", True] / times[what, True],
        }
        for what in kinds
    ]


def _run(kind: Callable[[Tensor], Tensor], x: Tensor, precision: str, backward: bool) -> Callable[[], None]:
    def run() -> None:
        given = x.detach().requires_grad_(backward)
        with torch.set_grad_enabled(backward), autocast(x.device, precision):
            made = kind(given)
        if backward:
            made.float().sum().backward()

    return run


def experts_line(row: Mapping[str, Any]) -> str:
    """A row as a line of a table; the head of the table for one without values."""
    cells = []
    for key, (head, width, form) in COLUMNS.items():
        text = head if row["what"] is None else format(row[key], form)
        cells.append(f"{text:>{width}}")
    return "  ".join(cells)
