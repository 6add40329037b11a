"""The operators of one token of a hybrid: a mixer between its projections, norms, the gate of an MLP."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import gated_product, mamba2_step, normed_gated_product, rms_norm, silu_mul, skinny_linear
from .case import OURS, PLAIN, Call, Case, Draw, Tensors, plain


def mixer(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    batch, heads, width, states, groups = shape
    size, inner = math.prod(shape[:4]), heads * width
    channels = inner + 2 * groups * states
    case = Case("mamba2_step", dict(zip("BHPNG", shape, strict=True)), size, 0)

    def tensors() -> Tensors:
        draw = Draw(device, dtype)
        return {
            "projected": draw(batch, inner + channels + heads),
            "conv_state": draw(batch, channels, 4),
            "state": draw(*shape[:4], wide=True),
            "conv_weight": draw(channels, 4),
            "conv_bias": draw(channels),
            **{name: draw(heads) for name in ("dt_bias", "A_log", "D")},
            "norm_weight": draw(inner),
        }

    def step(**t: Any) -> Tensor:
        return mamba2_step(**t, eps=1e-5, group_size=inner // groups)

    moved = 4 * size + batch * channels * 4 * dtype.itemsize
    case.calls[OURS] = lambda: Call(step, tensors(), False, moved)
    if device.type == "cuda":
        case.calls[PLAIN] = lambda: Call(plain(step), tensors(), False, moved)
    return case


def norm(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    rows, channels = shape
    case = Case("rms_norm", {"rows": rows, "D": channels}, rows * channels, 0)

    def tensors() -> Tensors:
        draw = Draw(device, dtype)
        return {"x": draw(rows, channels), "weight": draw(channels)}

    def by_torch(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (channels,), weight, 1e-5)

    case.calls[OURS] = lambda: Call(lambda **t: rms_norm(**t, eps=1e-5), tensors(), False)
    case.calls["torch rms_norm"] = lambda: Call(by_torch, tensors(), False)
    return case


def gate(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    rows, channels = shape
    case = Case("silu_mul", {"rows": rows, "D": channels}, rows * channels, rows * channels)

    def tensors() -> Tensors:
        draw = Draw(device, dtype)
        return {"gate": draw(rows, channels), "up": draw(rows, channels)}

    case.calls[OURS] = lambda: Call(silu_mul, tensors(), False)
    case.calls["torch silu, mul"] = lambda: Call(lambda gate, up: F.silu(gate) * up, tensors(), False)
    return case


def product(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    rows, width, neurons = shape
    case = Case("gated_product", {"rows": rows, "K": width, "N": neurons}, neurons * width, 0)

    def tensors() -> Tensors:
        draw = Draw(device, dtype)
        scale = width**-0.5
        matrices = {name: draw(neurons, width, scale=scale) for name in ("gate", "up")}
        return {"x": draw(rows, width), **matrices}

    def by_torch(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(F.linear(x, gate)) * F.linear(x, up)

    case.calls[OURS] = lambda: Call(gated_product, tensors(), False)
    case.calls["torch linear, silu, mul"] = lambda: Call(by_torch, tensors(), False)
    return case


def normed_product(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    rows, width, neurons = shape
    read = width * (width + 2 * neurons)
    case = Case("normed_gated_product", {"rows": rows, "K": width, "F": neurons}, read, 0)

    def tensors() -> Tensors:
        draw = Draw(device, dtype)
        of = {"weight": width, "gate": neurons, "up": neurons}
        matrices = {name: draw(columns, width, scale=width**-0.5) for name, columns in of.items()}
        return {"x": draw(rows, width), "residual": draw(rows, width), "norm_weight": draw(width), **matrices}

    def ours(**given: Tensor) -> Tensor:
        return normed_gated_product(**given, eps=1e-5)[1]

    def by_torch(
        x: Tensor, weight: Tensor, residual: Tensor, norm_weight: Tensor, gate: Tensor, up: Tensor
    ) -> Tensor:
        normed = F.rms_norm(residual + F.linear(x, weight), (len(weight),), norm_weight, 1e-5)
        return F.silu(F.linear(normed, gate)) * F.linear(normed, up)

    case.calls[OURS] = lambda: Call(ours, tensors(), False)
    case.calls["torch linear, add, norm, linear, silu, mul"] = lambda: Call(by_torch, tensors(), False)
    return case


def linear(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    rows, width, columns = shape
    case = Case("skinny_linear", {"rows": rows, "K": width, "N": columns}, columns * width, 0)

    def tensors() -> Tensors:
        draw = Draw(device, dtype)
        weight = draw(columns, width, scale=width**-0.5)
        return {"x": draw(rows, width), "weight": weight, "residual": draw(rows, columns)}

    def by_torch(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        return residual + F.linear(x, weight)

    case.calls[OURS] = lambda: Call(skinny_linear, tensors(), False)
    case.calls["torch linear, add"] = lambda: Call(by_torch, tensors(), False)
    return case
