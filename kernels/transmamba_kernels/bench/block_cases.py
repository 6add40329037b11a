"""A whole Vim mixer: projections, both convolutions, both scans, output projection."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import bidirectional_conv1d, bidirectional_scan
from . import peers
from .case import OURS, PLAIN, Call, Case, Draw, Tensors, plain

TAPS = 4


def weights(draw: Draw, width: int, inner: int, states: int) -> Tensors:
    """Of the mixer, its second direction's under names that end in `_b`."""
    rank = math.ceil(width / 16)
    found = {
        "in_proj": draw(2 * inner, width, scale=width**-0.5),
        "out_proj": draw(width, inner, scale=inner**-0.5),
    }
    for suffix in ("", "_b"):
        found |= {
            "conv" + suffix: draw(inner, TAPS, scale=0.5),
            "conv_bias" + suffix: draw(inner, scale=0.1),
            "x_proj" + suffix: draw(rank + 2 * states, inner, scale=inner**-0.5),
            "dt_proj" + suffix: draw(inner, rank, scale=rank**-0.5),
            "A" + suffix: draw.rates(inner, states),
            "D" + suffix: draw.full(1.0, inner),
            "delta_bias" + suffix: draw.full(-4.0, inner),
        }
    return found


def vim_block(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    batch, width, length, states = shape
    inner = 2 * width
    elements = batch * inner * length
    case = Case("vim_block", dict(zip("BDLN", shape, strict=True)), elements, 2 * elements * states)

    def call(run: Any) -> Call:
        draw = Draw(device, dtype)
        return Call(run, {"x": draw(batch, length, width), **weights(draw, width, inner, states)})

    def ours(**t: Tensor) -> Tensor:
        inside, z = F.linear(t["x"], t["in_proj"]).chunk(2, dim=-1)
        both = bidirectional_conv1d(
            inside, t["conv"], t["conv_bias"], t["conv_b"], t["conv_bias_b"], activation="silu"
        )
        scans: Tensors = {}
        for suffix, u in zip(("", "_b"), both, strict=True):
            made = F.linear(u, t["x_proj" + suffix])
            rank = made.shape[-1] - 2 * states
            step, B, C = made.split([rank, states, states], dim=-1)
            scans |= {"u" + suffix: u, "delta" + suffix: F.linear(step, t["dt_proj" + suffix])}
            scans |= {"B" + suffix: B, "C" + suffix: C}
            scans |= {name + suffix: t[name + suffix] for name in ("A", "D", "delta_bias")}
        y = bidirectional_scan(**scans, z=z, delta_softplus=True)  # type: ignore[arg-type]
        assert isinstance(y, Tensor)
        return F.linear(y, t["out_proj"])

    def by_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        made = F.conv1d(x, weight.unsqueeze(1), bias, padding=TAPS - 1, groups=inner)
        return F.silu(made[..., :length])

    def official(**t: Tensor) -> Tensor:
        """Channels before time, the second direction on flipped tensors, as the official Vim does."""
        xz = (t["in_proj"] @ t["x"].reshape(-1, width).t()).view(-1, batch, length).transpose(0, 1)
        scan, outputs = peers.selective_scan(), []
        for suffix in ("", "_b"):
            inside, z = (xz.flip(-1) if suffix else xz).chunk(2, dim=1)
            u = (peers.conv1d() or by_torch)(inside, t["conv" + suffix], t["conv_bias" + suffix])
            made = F.linear(u.transpose(1, 2), t["x_proj" + suffix])
            rank = made.shape[-1] - 2 * states
            step, B, C = made.split([rank, states, states], dim=-1)
            delta = (
                (t["dt_proj" + suffix] @ step.reshape(-1, rank).t()).view(-1, batch, length).transpose(0, 1)
            )
            turned = [x.transpose(1, 2).unsqueeze(1).contiguous() for x in (B, C)]
            A, D, bias = (t[name + suffix] for name in ("A", "D", "delta_bias"))
            y = scan(u.contiguous(), delta.contiguous(), A, *turned, D, z.contiguous(), bias)
            outputs.append(y.flip(-1) if suffix else y)
        return F.linear(((outputs[0] + outputs[1]) / 2).transpose(1, 2), t["out_proj"])

    case.calls[OURS] = lambda: call(ours)
    if device.type == "cuda":
        case.calls[PLAIN] = lambda: call(plain(ours))
        if peers.selective_scan() is not None:
            conv = "causal-conv1d" if peers.conv1d() is not None else "F.conv1d"
            case.calls[f"mamba_ssm (CUDA), flips, {conv}"] = lambda: call(official)
    return case
