"""The SSD mixers, cut out of a convolution's output, beside their peers and beside attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .. import bidirectional_ssd, ssd_scan
from . import peers
from .case import OURS, PLAIN, Call, Case, Draw, Tensors, plain


def ssd_tensors(
    draw: Draw, batch: int, length: int, heads: int, width: int, states: int, groups: int
) -> Tensors:
    """x, B and C cut out of the convolution's output."""
    sizes = (heads * width, groups * states, groups * states)
    x, B, C = draw(batch, length, sum(sizes)).split(sizes, dim=-1)
    return {
        "x": x.unflatten(-1, (heads, width)),
        "delta": draw(batch, length, heads, scale=0.5),
        "A": draw.rates(heads),
        "B": B.unflatten(-1, (groups, states)),
        "C": C.unflatten(-1, (groups, states)) * states**-0.5,
        "D": draw.full(1.0, heads),
        "delta_bias": draw.full(-4.0, heads),
    }


def one_way(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    batch, length, heads, width, states = shape
    elements = batch * length * heads * width
    case = Case("ssd_scan", dict(zip("BLHPN", shape, strict=True)), elements, 0)

    def tensors() -> Tensors:
        return ssd_tensors(Draw(device, dtype), batch, length, heads, width, states, 1)

    def gla() -> Call:
        t = tensors()
        dt = F.softplus(t["delta"].float() + t["delta_bias"])
        return Call(
            lambda **g: peers.simple_gla()(**g),
            {
                "q": t["C"].expand(-1, -1, heads, -1).contiguous(),
                "k": t["B"].expand(-1, -1, heads, -1).contiguous(),
                "v": (t["x"] * dt[..., None]).to(dtype),
                "g": dt * t["A"],
            },
        )

    def call(run: Callable[..., Any]) -> Call:
        return Call(lambda **t: run(**t, delta_softplus=True), tensors())

    case.calls[OURS] = lambda: call(ssd_scan)
    if device.type == "cuda":
        case.calls[PLAIN] = lambda: call(plain(ssd_scan))
        if peers.ssd() is not None:
            case.calls["mamba_ssm (Triton)"] = lambda: Call(lambda **t: peers.ssd()(**t), tensors())
        if peers.simple_gla() is not None:
            case.calls["fla chunk_simple_gla"] = gla
    return case


def both_ways(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    batch, length, heads, width = shape
    elements = batch * length * heads * width
    case = Case("bidirectional_ssd", dict(zip("BLHP", shape, strict=True)), elements, 0)

    def call(run: Callable[..., Any]) -> Call:
        draw = Draw(device, dtype)
        tensors = ssd_tensors(draw, batch, length, heads, width, width, heads)
        del tensors["D"]
        return Call(lambda **t: run(**t, delta_softplus=True), {**tensors, "A_b": draw.rates(heads)})

    def attention() -> Call:
        qkv = Draw(device, dtype)(batch, length, 3, heads, width).permute(2, 0, 3, 1, 4)
        run = F.scaled_dot_product_attention
        return Call(lambda q, k, v: run(q, k, v), dict(zip("qkv", qkv.unbind(0), strict=True)))

    case.calls[OURS] = lambda: call(bidirectional_ssd)
    if device.type == "cuda":
        case.calls[PLAIN] = lambda: call(plain(bidirectional_ssd))
    case.calls["torch attention"] = attention
    return case
