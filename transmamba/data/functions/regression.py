"""Functions of real values: linear, sparse linear, a network of two layers, a decision tree.

Definitions: Garg et al., arXiv 2208.01066, as Park et al., arXiv 2402.04248, took them over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config.registry import FUNCTIONS
from .prompts import NOISE, OWN, TASK, Drawn, Examples, above, below_one

# questions of a tree at most: with one more it has as many leaves again, which are all drawn
_DEEPEST = 12


@FUNCTIONS.register("linear")
@dataclass(frozen=True, kw_only=True)
class Linear(Examples):
    """y = w x, with x and w normal.

    d: dimensions
    points: examples of a prompt
    noise: standard deviation of what is added to y
    """

    noise: float = 0.0

    def problems(self) -> list[str]:
        there = 0 <= self.noise < math.inf
        return [] if there else [f"noise is {self.noise}; write 0 or a number above it"]

    @property
    def scale(self) -> float:
        return self.d + self.noise**2

    def weights(self, drawn: Drawn) -> Tensor:
        """w (B, d)"""
        return drawn.rows.normal(TASK, self.d)

    def outputs(self, drawn: Drawn, x: Tensor) -> Tensor:
        y = torch.einsum("bnd,bd->bn", x, self.weights(drawn))
        return y + self.noise * drawn.rows.normal(NOISE, self.points) if self.noise else y


@FUNCTIONS.register("sparse_linear")
@dataclass(frozen=True, kw_only=True)
class SparseLinear(Linear):
    """y = w x, where w has k dimensions that are not 0, among those that a curriculum leaves.

    d: dimensions
    points: examples of a prompt
    noise: standard deviation of what is added to y
    k: dimensions of w that are not 0
    """

    k: int = 3

    def problems(self) -> list[str]:
        return [*super().problems(), *(below_one(self, "k") or above(self, "k", "d"))]

    @property
    def least_dims(self) -> int:
        return self.k

    @property
    def scale(self) -> float:
        return self.k + self.noise**2

    def weights(self, drawn: Drawn) -> Tensor:
        chosen = drawn.rows.subset(OWN, self.k, drawn.dims, self.d)
        kept = torch.zeros(len(chosen), self.d, device=chosen.device).scatter(1, chosen, 1.0)
        return super().weights(drawn) * kept


@FUNCTIONS.register("two_layer_network")
@dataclass(frozen=True, kw_only=True)
class TwoLayerNetwork(Examples):
    """y = sqrt(2 / h) v relu(W x), with x, W (h, d) and v normal.

    d: dimensions
    points: examples of a prompt
    hidden: h, neurons
    """

    points: int = 101
    hidden: int = 100

    def problems(self) -> list[str]:
        return below_one(self, "hidden")

    @property
    def scale(self) -> float:
        return float(self.d)

    def outputs(self, drawn: Drawn, x: Tensor) -> Tensor:
        W = drawn.rows.normal(TASK, self.hidden, self.d)
        v = drawn.rows.normal(OWN, self.hidden)
        neurons = torch.einsum("bnd,bhd->bnh", x, W).relu()
        return (2 / self.hidden) ** 0.5 * torch.einsum("bnh,bh->bn", neurons, v)


@FUNCTIONS.register("decision_tree")
@dataclass(frozen=True, kw_only=True)
class DecisionTree(Examples):
    """A full binary tree: each inner node asks whether a dimension of its own is above 0, each leaf is
    normal.

    d: dimensions
    points: examples of a prompt
    depth: questions on the way to a leaf, 12 at most
    """

    points: int = 101
    depth: int = 4

    def problems(self) -> list[str]:
        if self.depth > _DEEPEST:
            return [
                f"depth is {self.depth}, of a tree of 2^{self.depth} leaves for {self.points} points; write "
                f"{_DEEPEST} at most"
            ]
        return below_one(self, "depth")

    def outputs(self, drawn: Drawn, x: Tensor) -> Tensor:
        inner = 2**self.depth - 1
        asked = drawn.rows.below(TASK, drawn.dims, inner)  # (B, nodes) dimensions
        leaves = drawn.rows.normal(OWN, inner + 1)
        node = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        for _ in range(self.depth):
            of = asked.gather(1, node)
            right = x.gather(2, of[..., None])[..., 0] > 0
            node = 2 * node + 1 + right
        return leaves.gather(1, node - inner)
