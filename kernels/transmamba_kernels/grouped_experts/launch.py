"""Launches: who computes what, sizes of tiles, and the buffers between the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..backend import interpreted
from ..triton_common import FUSED, cdiv, power_of_2
from .matrix_kernels import add_parts_kernel, matrix_grad_kernel, sorted_kernel
from .routing_kernels import count_kernel, place_kernel, table_kernel
from .row_kernels import hidden_grad_kernel, place_back_kernel, up_kernel

# Programs of the matrices' gradients that there should be, where rows must be parted to have so many.
PROGRAMS = 512
# A part's rows, at least: partial sums are as large as the matrix.
FEWEST_ROWS = 512
# Tiles of rows that share blocks of the matrices.
GROUP = 8


@dataclass(frozen=True)
class Tiles:
    """Of a product: rows, columns, what it sums up at a time; warps and stages of its program. `rows` of the
    kernels whose rows are pairs are all the same, for they share a table."""

    rows: int = 128
    columns: int = 128
    part: int = 64
    warps: int = 8
    stages: int = 3


# Fields of Tiles by kernel that replace the table's: for sweeps. "hidden" and "tokens": the gradients of what
# the activation read, and of x.
overrides: dict[str, dict[str, int]] = {name: {} for name in ("up", "down", "hidden", "tokens", "matrix")}


def tiles(kernel: str, columns: int, half: bool, gated: bool, roomy: bool = True) -> Tiles:
    """The table. columns: of the product; half: two bytes a number; roomy: whether a program may have 192 KiB
    of shared memory, which Hopper gives and GPUs before it do not.

    On sm_90 no case of tests/kernels/aot spills, with triton 3.6 and 3.9. Products of few numbers (a token's
    channels) leave room for two programs a multiprocessor, one of which computes while the other begins or
    writes: at most 128 registers and 96 KiB. Long ones are 256 columns wide where that fits, with 200
    registers and 192 KiB: the rows are read half as often, and loads have two turns of the loop to come.
    """
    if not half:
        found = Tiles(rows=64, columns=64, part=32, warps=4)
    elif kernel == "up" and gated:  # two products at once
        found = Tiles(columns=64)
    elif kernel in ("up", "hidden") or columns % 256 or not roomy:
        found = Tiles()
    else:
        found = Tiles(columns=256, stages=4)
    return replace(found, **overrides[kernel])


_shared_memory: dict[int, int] = {}


def _roomy(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    index = device.index if device.index is not None else torch.cuda.current_device()
    if index not in _shared_memory:
        properties = torch.cuda.get_device_properties(index)
        _shared_memory[index] = getattr(properties, "shared_memory_per_block_optin", 0)
    return _shared_memory[index] >= 200 * 1024


def _launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], warps: int, stages: int) -> None:
    kernel[grid](**arguments, num_warps=warps, num_stages=stages, **FUSED)


@dataclass(frozen=True)
class Routing:
    """order (S,) int32, the pair of each row; bounds (E blocks,) int32 and table (tiles, 3) int32, see
    routing_kernels.py."""

    order: Tensor
    bounds: Tensor
    table: Tensor


@dataclass(frozen=True)
class Problem:
    """One call's tensors, contiguous, as in `grouped_experts`. `launch`: who runs the kernels."""

    x: Tensor
    chosen: Tensor
    weights: Tensor
    up: Tensor
    down: Tensor
    activation: str
    gated: bool
    launch: Callable[..., None] = _launch

    @property
    def pairs(self) -> int:
        return self.chosen.shape[0] * self.chosen.shape[1]

    @property
    def experts(self) -> int:
        return self.down.shape[0]

    @property
    def width(self) -> int:
        return self.down.shape[1]

    @property
    def neurons(self) -> int:
        return self.down.shape[2]

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of order, bounds and table, and of what the activation makes and reads; the last (0,) where what it
        made says enough."""
        pairs, wide = self.pairs, self.up.shape[1]
        before = (pairs, wide) if self._reads else (0,)
        return (
            (pairs,),
            (self.experts * cdiv(pairs, self._counted),),
            (self._most_tiles(self._rows), 3),
            (pairs, self.neurons),
            before,
        )

    def route(self) -> Routing:
        """The pairs sorted by expert, and the table of the products whose rows are pairs."""
        made = [self.chosen.new_empty(shape, dtype=torch.int32) for shape in self.shapes()[:3]]
        order, bounds, table = made
        counts = torch.empty_like(bounds)
        common = {"chosen": self.chosen, "pairs": self.pairs, **self._parted}
        common |= {"BLOCK": self._counted, "EP": power_of_2(self.experts)}
        grid = (cdiv(self.pairs, self._counted),)
        self.launch(count_kernel, grid, {**common, "counts": counts}, 4, 1)
        torch.cumsum(counts, 0, dtype=torch.int32, out=bounds)
        self.launch(place_kernel, grid, {**common, "bounds": bounds, "order": order}, 4, 1)
        return Routing(order, bounds, self._table(bounds, table, self._rows))

    def forward(self, routing: Routing, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """y (N, D), and what `shapes` says of the activation, what it read only for `keep`."""
        *_, made, read = self.shapes()
        hidden, before = self.x.new_empty(made), self.x.new_empty(read if keep else (0,))
        self._by_row(
            up_kernel, "up", routing, self.neurons, x=self.x, up=self.up, hidden=hidden, before=before,
            KEEP=keep and self._reads, **self._layer,
        )  # fmt: skip
        said = self.x.new_empty(self.pairs, self.width)
        self._by_row(
            place_back_kernel, "down", routing, self.width, rows=hidden, matrices=self.down, out=said,
            weights=self.weights, K=self.neurons, N=self.width, TURNED=True, WEIGHED=True,
        )  # fmt: skip
        return self._of_tokens(said), hidden, before

    def gradients(
        self, dy: Tensor, routing: Routing, hidden: Tensor, before: Tensor, tokens: bool, matrices: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
        """Of x, where `tokens` asks for it, of the weights (N, k) in float32, and of both matrices where
        `matrices` does."""
        dbefore = self.x.new_empty(self.pairs, self.up.shape[1])
        blocks = cdiv(self.neurons, self._tiles("hidden", self.neurons).columns)
        shares = self.x.new_empty((blocks, self.pairs), dtype=torch.float32)
        self._by_row(
            hidden_grad_kernel, "hidden", routing, self.neurons, dy=dy, down=self.down, weights=self.weights,
            hidden=hidden, before=before, dbefore=dbefore, shares=shares, pairs=self.pairs, **self._layer,
        )  # fmt: skip
        dx = dup = ddown = None
        if tokens:
            sent = self.x.new_empty(self.pairs, self.width)
            self._by_row(
                place_back_kernel, "tokens", routing, self.width, rows=dbefore, matrices=self.up, out=sent,
                weights=self.weights, K=self.up.shape[1], N=self.width, TURNED=False, WEIGHED=False,
            )  # fmt: skip
            dx = self._of_tokens(sent)
        if matrices:
            rows, sent = self._sorted(dy, routing)
            dup = self._of_matrix(dbefore, rows, routing, self.up)
            ddown = self._of_matrix(sent, hidden, routing, self.down)
        return dx, shares.sum(0).view(self.chosen.shape), dup, ddown

    def _sorted(self, dy: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
        """x and the weighed dy in the order of experts: whose rows the matrices' gradients sum up, which take
        them faster so than one by one."""
        rows, sent = (self.x.new_empty(self.pairs, self.width) for _ in "ab")
        block = min(256, power_of_2(self.width))
        arguments = dict(
            x=self.x, dy=dy, order=routing.order, weights=self.weights, rows=rows, sent=sent,
            pairs=self.pairs, D=self.width, EACH=self.chosen.shape[1], ROWS=16, BLOCK=block,
        )  # fmt: skip
        self.launch(sorted_kernel, (cdiv(self.pairs, 16),), arguments, 4, 1)
        return rows, sent

    def _of_matrix(self, a: Tensor, b: Tensor, routing: Routing, matrix: Tensor) -> Tensor:
        shape = matrix.shape[1:]
        cut = self._tiles("matrix", shape[1])
        each = cdiv(shape[0], cut.rows) * cdiv(shape[1], cut.columns)
        size = self._part(each)
        parts = self._most_tiles(size)
        table = self._table(routing.bounds, routing.bounds.new_empty(parts, 3), size)
        made = matrix.new_empty(matrix.shape)
        # where every expert has one part there are no sums of parts
        several = size < self.pairs
        sums = matrix.new_empty((parts, *shape) if several else 1, dtype=torch.float32)
        arguments = dict(
            a=a, b=b, table=table, bounds=routing.bounds, out=made, parts=sums, **self._parted,
            M=shape[0], N=shape[1], **self._cut(cut),
        )  # fmt: skip
        self.launch(matrix_grad_kernel, (parts * each,), arguments, cut.warps, cut.stages)
        numbers, block = shape[0] * shape[1], 2048
        arguments = dict(
            parts=sums, bounds=routing.bounds, out=made, **self._parted, size=size, numbers=numbers,
            per_expert=cdiv(numbers, block), EP=power_of_2(self.experts), BLOCK=block,
        )  # fmt: skip
        self.launch(add_parts_kernel, (self.experts * cdiv(numbers, block),), arguments, 4, 1)
        return made

    def _part(self, each: int) -> int:
        """Rows of a part: so many that all parts of a matrix in `each` tiles are `PROGRAMS`, or all rows."""
        return min(power_of_2(self.pairs), max(FEWEST_ROWS, power_of_2(cdiv(self.pairs * each, PROGRAMS))))

    def _by_row(self, kernel: Any, name: str, routing: Routing, columns: int, **own: Any) -> None:
        cut, tiles = self._tiles(name, columns), len(routing.table)
        arguments = dict(
            order=routing.order, table=routing.table, tiles=tiles, GROUP=GROUP, **self._cut(cut), **own
        )
        self.launch(kernel, (tiles * cdiv(columns, cut.columns),), arguments, cut.warps, cut.stages)

    def _table(self, bounds: Tensor, table: Tensor, size: int) -> Tensor:
        padded = power_of_2(self.experts)
        block = max(16, min(128, 8192 // padded))
        arguments = dict(
            bounds=bounds, table=table, **self._parted, tiles=len(table), size=size, BT=block, EP=padded
        )
        self.launch(table_kernel, (cdiv(len(table), block),), arguments, 4, 1)
        return table

    def _of_tokens(self, said: Tensor) -> Tensor:
        """(N, D) of (S, D); the sum is float32's."""
        count, each = self.chosen.shape
        return said if each == 1 else said.view(count, each, -1).sum(1)

    def _most_tiles(self, size: int) -> int:
        """That rows of all experts in tiles of `size` can be."""
        return (self.pairs + self.experts * (size - 1)) // size

    @property
    def _rows(self) -> int:
        """Of a tile of pairs."""
        return self._tiles("up", self.neurons).rows

    def _tiles(self, kernel: str, columns: int) -> Tiles:
        return tiles(kernel, columns, self.x.dtype != torch.float32, self.gated, _roomy(self.x.device))

    def _cut(self, cut: Tiles) -> dict[str, Any]:
        kinds = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
        kind = tl.float32 if interpreted() else kinds[self.x.dtype]
        precision = "tf32x3" if self.x.dtype == torch.float32 else "tf32"
        return {"BM": cut.rows, "BN": cut.columns, "BK": cut.part, "DOT": kind, "PRECISION": precision}

    @property
    def _layer(self) -> dict[str, Any]:
        return {
            "D": self.width, "F": self.neurons, "EACH": self.chosen.shape[1], "GATED": self.gated,
            "SILU": self.activation == "silu",
        }  # fmt: skip

    @property
    def _parted(self) -> dict[str, int]:
        return {"experts": self.experts, "blocks": cdiv(self.pairs, self._counted)}

    @property
    def _counted(self) -> int:
        """Pairs that a program counts."""
        return max(16, min(1024, 8192 // power_of_2(self.experts)))

    @property
    def _reads(self) -> bool:
        """Whether the gradient of the activation needs what it read; a relu's is seen by what it made."""
        return self.gated or self.activation != "relu"
