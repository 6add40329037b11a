"""Launches of the SSD kernels, for one direction or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..backend import interpreted
from ..triton_common import FUSED, cdiv, on_device_of, power_of_2, rows
from .grad_kernels import receive_kernel
from .kernels import output_kernel, states_kernel
from .send_kernels import send_kernel

# The largest P and N that a program's tiles hold.
WIDEST, DEEPEST = 128, 256


@dataclass(frozen=True)
class Tiles:
    """How a pass is cut. Up to `fused` chunks, the forward both ways lets every chunk's program sum up its
    states from the tokens itself, work quadratic in the chunks; otherwise a sweep over the chunks writes
    them, in programs of `block_p` by `block_n` of the state. `send_warps`: of the backward's second kernel.
    `part`: of N, what the backward's last products take at a time; in bfloat16 at least 64, see
    `Problem._padded`."""

    chunk: int = 64
    warps: int = 4
    send_warps: int = 8
    stages: int = 2
    fused: int = 4
    block_p: int = 64
    block_n: int = 128
    sweep_warps: int = 4
    sweep_stages: int = 2
    part: int = 64


# Fields of Tiles by pass, "forward" or "backward", that replace the table's: for sweeps over them.
overrides: dict[str, dict[str, int]] = {"forward": {}, "backward": {}}


def tiles(step: str, width: int, depth: int, half: bool) -> Tiles:
    """The table. width, depth: P and N, padded to powers of two; half: bfloat16 products.

    On sm_90 the cases of tests/kernels/aot spill no registers but for `send_kernel`. What spills is no case,
    all of it in the backward (bytes a thread, the more of triton 3.6 and 3.9). bfloat16: `send_kernel` with
    two deltas and seq_idx (8), beyond 64 by 128 (210); `receive_kernel` with a gate (120). float32:
    `send_kernel` both ways with P = N = 64 (24), with N = 128 (220), with N = 16 (170, gated 690). 16 warps
    spill more.
    """
    if half:
        # Four warps for the send kernel spill some registers, and take three quarters of what eight do;
        # split, half.
        found = Tiles(warps=8 if width * depth > 64 * 128 else 4, send_warps=4)
    else:
        found = Tiles(chunk=16, warps=8, stages=1, fused=8, block_p=32, block_n=64, sweep_stages=1)
    return replace(found, **overrides[step])


def fits(width: int, depth: int) -> bool:
    """Whether the kernels take heads of `width` channels with states of `depth`."""
    return width <= WIDEST and depth <= DEEPEST and power_of_2(width) * power_of_2(depth) <= 128 * 128


def _launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], warps: int, stages: int) -> None:
    kernel[grid](**arguments, num_warps=warps, num_stages=stages, **FUSED)


@dataclass(frozen=True)
class Problem:
    """One call's tensors, as in `ssd_scan` and `bidirectional_ssd`. `ahead`, `back`: the directions that run;
    one alone reads delta and A. Where both run there is no initial state, and `split` keeps their outputs
    apart, each with half of a token's own term. `launch`: who runs the kernels.
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    bias: Tensor | None = None
    initial_state: Tensor | None = None
    seq_idx: Tensor | None = None
    lengths: Tensor | None = None
    softplus: bool = False
    ahead: bool = True
    back: bool = False
    A_b: Tensor | None = None
    delta_b: Tensor | None = None
    split: bool = False
    launch: Callable[..., None] = _launch

    def forward(self, final: bool = False) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """y (B, L, H, P), twice the same or, split, of each direction; and the final state (B, H, P, N) if
        asked for."""
        x = self.x
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        y_b = torch.empty_like(y) if self.split else y
        end = x.new_empty(self._state_shape, dtype=torch.float32) if final else None
        if x.numel() == 0 or self.B.numel() == 0:
            if end is not None:
                _ = end.zero_() if self.initial_state is None else end.copy_(self.initial_state)
            return (y.zero_(), y_b.zero_()), end
        with on_device_of(x):
            cut = self._tiles("forward")
            shared, chunks = self._shared(cut), cdiv(x.shape[1], cut.chunk)
            # One way the sweep is cheaper at any length.
            fused = self.ahead and self.back and chunks <= cut.fused
            states = x if fused else self._sweep(cut, shared, chunks, last_state=end)
            self._by_chunk(output_kernel, cut, shared, chunks, states=states, y=y, y_b=y_b, FUSED=fused)
        return (y, y_b), end

    def gradients(
        self, dy: Tensor, dfinal: Tensor | None = None, dy_b: Tensor | None = None
    ) -> dict[str, Tensor]:
        """By field, where the field is not None; dfinal where the final state was asked for, dy_b where
        split."""
        inputs = {n: t for n in FLOATS if (t := getattr(self, n)) is not None}
        if self.x.numel() == 0 or self.B.numel() == 0:
            found = {n: torch.zeros(t.shape, dtype=t.dtype, device=t.device) for n, t in inputs.items()}
            if dfinal is not None and self.initial_state is not None:
                found["initial_state"].copy_(dfinal)
            return found
        with on_device_of(self.x):
            dy = dy.contiguous()
            return self._gradients(dy, dy if dy_b is None else dy_b.contiguous(), dfinal, inputs)

    def _gradients(
        self, dy: Tensor, dy_b: Tensor, dfinal: Tensor | None, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        (batch, length, heads, width), (groups, depth) = self.x.shape, self.B.shape[2:]
        cut = self._tiles("backward")
        shared, chunks = self._shared(cut), cdiv(length, cut.chunk)
        made = {
            n: torch.empty(t.shape, dtype=t.dtype, device=t.device)
            for n, t in inputs.items()
            if n in ("x", "z", "delta", "delta_b", "B", "C")
        }
        if self.initial_state is not None:
            made["initial_state"] = torch.empty(self._state_shape, dtype=torch.float32, device=dy.device)
        states = self._sweep(
            cut, shared, chunks, (dy, dy_b), last_slope=dfinal, first_slope=made.get("initial_state")
        )
        by_head = {
            n: made[n] if groups == heads else made[n].new_empty(batch, length, heads, depth)
            for n in ("B", "C")
        }
        shares = dy.new_empty((3, batch * chunks, heads), dtype=torch.float32)
        share_D = dy if self.D is None else dy.new_empty((batch * chunks, heads, width), dtype=torch.float32)
        through = dy.new_empty((batch * chunks, heads, 2, 2, cut.chunk), dtype=torch.float32)
        part = min(cut.part, self._padded(depth))
        common = {"dy": dy, "dy_b": dy_b, "states": states, "through": through, "PART": part}
        self._by_chunk(
            receive_kernel, cut, shared, chunks, **common, dz=made.get("z", dy), dC=by_head["C"], dD=share_D,
        )  # fmt: skip
        self._by_chunk(
            send_kernel, cut, shared, chunks, **common, dx=made["x"], ddelta=made["delta"],
            ddelta_b=made.get("delta_b", dy), dB=by_head["B"], scalars=shares,
        )  # fmt: skip
        if groups < heads:
            for n, parts in by_head.items():
                torch.sum(parts.unflatten(2, (groups, -1)), 3, out=made[n])
        # Rows of directions that don't run, and of a bias that is none, hold nothing.
        totals = shares.sum(1)
        if self.ahead and self.back and self.A_b is None:
            made["A"] = totals[0] + totals[1]
        else:
            made["A"] = totals[int(not self.ahead)].clone()
        if self.A_b is not None:
            made["A_b"] = totals[1].clone()
        if self.bias is not None:
            made["bias"] = totals[2].clone()
        if self.D is not None:
            made["D"] = share_D.sum((0, 2) if self.D.dim() == 1 else 0)
        return {n: grad.to(inputs[n].dtype) for n, grad in made.items()}

    @property
    def _state_shape(self) -> tuple[int, int, int, int]:
        batch, _, heads, width = self.x.shape
        return batch, heads, width, self.B.shape[3]

    @property
    def _half(self) -> bool:
        return all(t.dtype == torch.bfloat16 for t in (self.x, self.B, self.C))

    def _padded(self, size: int) -> int:
        """P or N as the kernels' tiles have it."""
        # In bfloat16 triton 3.6 reads past its shared memory where a product is narrower than 64.
        return max(64 if self._half and not interpreted() else 16, power_of_2(size))

    def _tiles(self, step: str) -> Tiles:
        return tiles(step, self._padded(self.x.shape[3]), self._padded(self.B.shape[3]), self._half)

    def _shared(self, cut: Tiles) -> dict[str, Any]:
        """What all kernels take."""
        x, B, C, delta = (
            _within(t, cut.chunk) for t in (rows(self.x), rows(self.B), rows(self.C), self.delta)
        )
        delta_b = delta if self.delta_b is None else _within(self.delta_b, cut.chunk)
        if delta.dtype != delta_b.dtype:
            delta, delta_b = delta.float(), delta_b.float()
        z = x if self.z is None else _within(rows(self.z), cut.chunk)
        # float16 goes through tf32, which has its digits and float32's range, where states would overflow.
        exact = any(t.dtype == torch.float32 for t in (self.x, self.B, self.C))
        arguments: dict[str, Any] = {
            "x": x, "z": z, "delta": delta, "delta_b": delta_b, "A": self.A.contiguous(),
            "A_b": (self.A if self.A_b is None else self.A_b).contiguous(), "B": B, "C": C,
            "bias": x if self.bias is None else self.bias.contiguous(),
            "ids": x if self.seq_idx is None else self.seq_idx.contiguous(),
            "lengths": x if self.lengths is None else self.lengths.contiguous(),
            "batch": x.shape[0], "length": x.shape[1], "heads": x.shape[2],
            "per_group": x.shape[2] // B.shape[2], "width": x.shape[3], "depth": B.shape[3],
            "Q": cut.chunk, "FORWARD": self.ahead, "BACKWARD": self.back,
            "DOT": tl.bfloat16 if self._half and not interpreted() else tl.float32,
            "PRECISION": "tf32x3" if exact else "tf32",
            "BIAS": self.bias is not None, "SOFTPLUS": self.softplus,
            "SEQ": self.seq_idx is not None, "LENGTHS": self.lengths is not None,
        }  # fmt: skip
        named = {"x": x, "z": z, "B": B, "C": C, "delta_s": delta, "deltab_s": delta_b}
        for name, tensor in named.items():
            last = "g" if name in ("B", "C") else "h"
            joint = "" if name.endswith("_s") else "_"
            for axis, letter in enumerate(f"bl{last}"):
                arguments[f"{name}{joint}{letter}"] = tensor.stride(axis)
        return arguments

    def _sweep(
        self,
        cut: Tiles,
        shared: dict[str, Any],
        chunks: int,
        dy: tuple[Tensor, Tensor] | None = None,
        last_state: Tensor | None = None,
        last_slope: Tensor | None = None,
        first_slope: Tensor | None = None,
    ) -> Tensor:
        """(kinds, B, H, chunks, P, N): the states, and with dy the slopes."""
        batch, heads, width, depth = self._state_shape
        kinds = (self.ahead + self.back) * (1 if dy is None else 2)
        states = self._scratch(kinds, chunks)
        block_p, block_n = min(cut.block_p, self._padded(width)), min(cut.block_n, self._padded(depth))
        blocks = cdiv(width, block_p) * cdiv(depth, block_n)
        start, end = self.initial_state, last_state if dy is None else last_slope
        arguments = dict(
            **shared, dy=states if dy is None else dy[0], dy_b=states if dy is None else dy[1], states=states,
            chunks=chunks,
            first_state=states if start is None else start.contiguous(),
            last_state=states if last_state is None else last_state,
            first_slope=states if first_slope is None else first_slope,
            last_slope=states if last_slope is None else last_slope.contiguous(),
            BLOCK_P=block_p, BLOCK_N=block_n, SLOPES=dy is not None,
            GATED=dy is not None and self.z is not None, START=start is not None, END=end is not None,
        )  # fmt: skip
        grid = (batch * heads, blocks, kinds)
        self.launch(states_kernel, grid, arguments, cut.sweep_warps, cut.sweep_stages)
        return states

    def _scratch(self, kinds: int, chunks: int) -> Tensor:
        batch, heads, width, depth = self._state_shape
        dtype = torch.bfloat16 if self._half else torch.float32
        return self.x.new_empty((kinds, batch, heads, chunks, width, depth), dtype=dtype)

    def _by_chunk(self, kernel: Any, cut: Tiles, shared: dict[str, Any], chunks: int, **own: Any) -> None:
        batch, heads, width, depth = self._state_shape
        arguments = dict(
            **shared, **own, chunks=chunks, D=self.x if self.D is None else self.D,
            D_h=0 if self.D is None else self.D.stride(0),
            D_p=0 if self.D is None or self.D.dim() == 1 else self.D.stride(1),
            P=self._padded(width), N=self._padded(depth), TWO=self.delta_b is not None, SPLIT=self.split,
            GATED=self.z is not None, SKIP=self.D is not None,
        )  # fmt: skip
        warps = cut.send_warps if kernel is send_kernel else cut.warps
        self.launch(kernel, (batch * chunks * heads,), arguments, warps, cut.stages)


FLOATS = ("x", "delta", "A", "B", "C", "D", "z", "bias", "initial_state", "A_b", "delta_b")


def _within(tensor: Tensor, tokens: int) -> Tensor:
    """The tensor (B, L, ...), copied if `tokens` tokens lie farther apart than the kernels' 32 bits reach."""
    return tensor if tensor.stride(1) * tokens < 2**31 else tensor.contiguous()
