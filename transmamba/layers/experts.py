"""Experts in the place of an MLP, of which a router chooses some for each token.

One of them, by its raw probability: Switch Transformers (arXiv 2101.03961) and MoE-Mamba (arXiv
2401.04081). Several,
whose probabilities are brought to a sum of 1: Mixtral's. The router computes in float32. Shapes: B rows, L
tokens of D channels, N = B L, E experts of F neurons, k of them a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers.integrations.moe import use_experts_implementation

from ..core.output import autocast_type, wide
from ..errors import refuse_all
from .capacity import capacity_problems, within_capacity
from .grouped import OURS, has_kernels

Activation = Literal["silu", "relu"]
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu}
# what a router's record is called, in a layer's: see `Routed.parts`
ROUTER, CHOSEN, KEPT = "router", "chosen", "within"


@dataclass(frozen=True, kw_only=True)
class ExpertsShape:
    """width, neurons: D, F
    count, each: E, k
    normalised: whether a token's k weights are brought to a sum of 1
    scale:      a fixed factor of them
    gated:      whether an expert is down(act(gate) * up), else down(act(up)); no biases
    """

    width: int
    neurons: int
    count: int
    each: int = 1
    normalised: bool = False
    scale: float = 1.0
    gated: bool = False
    act: Activation = "relu"

    def __post_init__(self) -> None:
        problems = []
        if self.count < 2:
            problems.append(f"{self.count} experts leave a router nothing to choose; write at least 2")
        elif not 1 <= self.each <= self.count:
            problems.append(
                f"each token has {self.each} of {self.count} experts; write a number from 1 to that"
            )
        elif self.normalised and self.each == 1:
            problems.append(
                "one expert a token has the weight 1 whatever the router says, where weights are brought "
                "to a sum of 1, so that nothing trains the router; write its raw probability (switch), or "
                "at least 2 experts a token"
            )
        refuse_all(problems)


class Router(nn.Module):
    """Logits (..., E) of tokens (..., D), in float32 at least, under autocast too."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(wide(x), wide(self.weight))


@dataclass(frozen=True)
class Routed:
    """logits (B, L, E), chosen (B, L, k) int64 the experts, weights (B, L, k) 0 for what is dropped,
    within (B, L, k) bool what is not"""

    logits: Tensor
    chosen: Tensor
    weights: Tensor
    within: Tensor

    def parts(self, name: str = "") -> dict[str, Tensor]:
        """As a layer's record has it; name: of the router, in a layer with several."""
        found = {ROUTER: self.logits, CHOSEN: self.chosen, KEPT: self.within}
        return {f"{kind}{name}": tensor for kind, tensor in found.items()}


def route(logits: Tensor, shape: ExpertsShape, capacity: float | None, real: Tensor | None = None) -> Routed:
    """The likeliest experts of each token. Their weights are probabilities over all experts, so that a
    router has a gradient even where it chooses one.

    capacity: an expert takes so many times its even share of this batch's tokens and no more, see
    `within_capacity`
    real: (B, L) bool, tokens that are no padding; padding goes nowhere, and takes no one's place
    """
    probabilities = logits.softmax(dim=-1)
    if shape.each == 1:  # sorting is most of what a router costs
        weights, chosen = probabilities.max(dim=-1, keepdim=True)
    else:
        weights, chosen = probabilities.topk(shape.each, dim=-1)
    if shape.normalised:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    within = torch.ones_like(chosen, dtype=torch.bool)
    if capacity is not None:
        within = within_capacity(chosen, shape.count, capacity, real)
    elif real is not None:
        within = within & real[..., None]
    return Routed(logits, chosen, torch.where(within, weights * shape.scale, 0.0), within)


class _Experts(nn.Module):
    """All experts' weights by the names that transformers' implementations read.

    The loop of `forward` is `eager`, which the others are held against; `grouped_mm` is one product of all
    experts, `transmamba` our kernels' where they run, else `grouped_mm`.
    """

    up: str
    _is_expert_parallel = False  # which older versions of transformers do not say

    def __init__(self, config: Any) -> None:
        super().__init__()
        shape: ExpertsShape = config.shape
        self.num_experts = shape.count
        rows = shape.neurons * (2 if shape.gated else 1)
        self.register_parameter(self.up, nn.Parameter(torch.empty(shape.count, rows, shape.width)))
        self.down_proj = nn.Parameter(torch.empty(shape.count, shape.width, shape.neurons))
        self.act_fn = ACTIVATIONS[shape.act]

    def forward(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """tokens (N, D), chosen (N, k), weights (N, k) -> (N, D)"""
        into: Tensor = getattr(self, self.up)  # rounded it is no parameter
        made = torch.zeros_like(tokens)
        for e in range(self.num_experts):
            rows, choice = (chosen == e).nonzero(as_tuple=True)
            hidden = F.linear(tokens[rows], into[e])
            if self.up == "gate_up_proj":
                gate, up = hidden.chunk(2, dim=-1)
                hidden = self.act_fn(gate) * up
            else:
                hidden = self.act_fn(hidden)
            said = F.linear(hidden, self.down_proj[e]) * weights[rows, choice, None]
            made = made.index_add(0, rows, said.to(made.dtype))
        return made


@use_experts_implementation(has_gate=True)
class GatedExperts(_Experts):
    up = "gate_up_proj"


@use_experts_implementation(has_gate=False)
class PlainExperts(_Experts):
    up = "up_proj"


class Experts(nn.Module):
    """A router and its experts: what they add to the stream, and the router's record.

    capacity: in training, see `within_capacity`; otherwise, and with None, no token is dropped
    """

    loop: nn.Module

    def __init__(self, shape: ExpertsShape, capacity: float | None = None) -> None:
        super().__init__()
        refuse_all(capacity_problems(capacity))
        self.shape, self.capacity = shape, capacity
        self.router = Router(shape.width, shape.count)
        kind = GatedExperts if shape.gated else PlainExperts
        self.experts = kind(SimpleNamespace(shape=shape, _experts_implementation=OURS))
        with torch.device("meta"):  # for what has no grouped product, with the weights of those above
            self.__dict__["loop"] = kind(SimpleNamespace(shape=shape, _experts_implementation="eager"))
        self.reset_()

    @torch.no_grad()
    def reset_(self) -> None:
        """As MoE-Mamba's code draws them: truncated normals of a variance of 0.1 over the inputs of a
        matrix, of the second those of all experts, so that little is added at first."""
        into = self.experts.get_parameter(self.experts.up)
        begin_(self.router.weight, self.shape.width)
        begin_(into, self.shape.width)
        begin_(self.experts.down_proj, self.shape.count * self.shape.neurons)

    def implement(self, name: str) -> None:
        """One of transformers' implementations: transmamba (the default), grouped_mm, batched_mm ..."""
        config: Any = self.experts.config
        config._experts_implementation = name

    def forward(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Routed]:
        """x (B, L, D), real (B, L) bool -> (B, L, D) and what was routed where."""
        capacity = self.capacity if self.training else None
        routed = route(self.router(x), self.shape, capacity, real)
        tokens, weights = x.flatten(0, 1), routed.weights.flatten(0, 1)
        return self.products(tokens, routed.chosen.flatten(0, 1), weights).view_as(x).to(x.dtype), routed

    def products(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Of tokens (N, D) what the experts `chosen` (N, k) say, with these weights, (N, D). Grouped
        products know no autocast: weights are brought to its type here."""
        own = dict[str, Tensor](self.experts.named_parameters())
        rounded = autocast_type(tokens.device.type)
        dtype = rounded or self.experts.down_proj.dtype
        if rounded is not None:
            own = {name: parameter.to(dtype) for name, parameter in own.items()}
        config: Any = self.experts.config
        any_size = config._experts_implementation == OURS and dtype != torch.float64 and has_kernels(tokens)
        grouped = any_size or _grouped(dtype, self.shape)
        work: nn.Module = self.experts if grouped else self.loop
        return functional_call(work, own, (tokens.to(dtype), chosen, weights))


def _grouped(dtype: torch.dtype, shape: ExpertsShape) -> bool:
    """Whether torch has a grouped product: not in float64, and of rows of whole 16 bytes alone."""
    sizes = (shape.width * dtype.itemsize, shape.neurons * dtype.itemsize)
    return dtype != torch.float64 and not any(size % 16 for size in sizes)


class SwitchLinear(nn.Module):
    """One projection of E, by the raw probability of the likeliest: of the inner variants of MoE-Mamba. A
    loop over experts [nothing of transformers' holds a single projection]."""

    # for the device, in each pass, so that no step with it can be recorded
    waits = "the loop over experts of student.variant inner waits for how many tokens chose each"

    def __init__(self, width: int, outputs: int, count: int, capacity: float | None = None) -> None:
        super().__init__()
        refuse_all(capacity_problems(capacity))
        self.shape = ExpertsShape(width=width, neurons=outputs, count=count)
        self.capacity = capacity
        self.router = Router(width, count)
        self.weight = nn.Parameter(torch.empty(count, outputs, width))
        self.reset_()

    @torch.no_grad()
    def reset_(self) -> None:
        begin_(self.router.weight, self.shape.width)
        begin_(self.weight, self.shape.width)

    def forward(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Routed]:
        """x (B, L, D) -> (B, L, O)"""
        routed = route(self.router(x), self.shape, self.capacity if self.training else None, real)
        chosen = routed.chosen[..., 0]
        made = x.new_zeros(*x.shape[:-1], self.shape.neurons)
        for e in range(self.shape.count):
            rows = (chosen == e).nonzero(as_tuple=True)
            made = made.index_put(rows, F.linear(x[rows], self.weight[e]).to(made.dtype))
        return made * routed.weights.to(made.dtype), routed


def begin_(weight: Tensor, inputs: int) -> None:
    """Normals within two deviations, of a variance of 0.1 over the inputs (before they are cut)."""
    std = (0.1 / inputs) ** 0.5
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
