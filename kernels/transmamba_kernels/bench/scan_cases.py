"""The selective scans: ours on the layouts of Vim's mixer, mamba_ssm's on its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import bidirectional_scan, selective_scan
from . import peers
from .case import OURS, PLAIN, Call, Case, Draw, Tensors, plain


def scan_tensors(
    draw: Draw, batch: int, channels: int, length: int, states: int, suffix: str = ""
) -> Tensors:
    """u and delta of their own, B and C cut out of a projection."""
    rank = math.ceil(channels / 32)
    projected = draw(batch, length, rank + 2 * states)
    found = {
        "u": draw(batch, length, channels),
        "delta": draw(batch, length, channels, scale=0.5),
        "A": draw.rates(channels, states),
        "B": projected[..., rank : rank + states],
        "C": projected[..., rank + states :],
        "D": draw.full(1.0, channels),
        "delta_bias": draw.full(-4.0, channels),
    }
    return {name + suffix: value for name, value in found.items()}


def gate(draw: Draw, batch: int, length: int, channels: int) -> Tensor:
    """The second half of an input projection."""
    return draw(batch, length, 2 * channels)[..., channels:]


def channels_first(t: Tensors, z: Tensor, suffix: str = "") -> tuple[Tensor, ...]:
    """A scan's tensors as mamba_ssm keeps them."""

    def turn(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous()

    u, delta, A, B, C, D, bias = (t[n + suffix] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias"))
    return turn(u), turn(delta), A, turn(B)[:, None], turn(C)[:, None], D, turn(z), bias


def one_way(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    batch, channels, length, states = shape
    elements = batch * channels * length
    case = Case("selective_scan", dict(zip("BDLN", shape, strict=True)), elements, elements * states)

    def call(run: Callable[..., Any]) -> Call:
        draw = Draw(device, dtype)
        tensors = scan_tensors(draw, batch, channels, length, states)
        return Call(
            lambda **t: run(**t, delta_softplus=True), {**tensors, "z": gate(draw, batch, length, channels)}
        )

    def peer() -> Call:
        draw = Draw(device, dtype)
        tensors = scan_tensors(draw, batch, channels, length, states)
        turned = channels_first(tensors, gate(draw, batch, length, channels))
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        return Call(lambda **t: peers.selective_scan()(*t.values()), dict(zip(names, turned, strict=True)))

    case.calls[OURS] = lambda: call(selective_scan)
    if device.type == "cuda" and length <= 4096:
        case.calls[PLAIN] = lambda: call(plain(selective_scan))
    if device.type == "cuda" and peers.selective_scan() is not None:
        case.calls["mamba_ssm (CUDA)"] = peer
    return case


def both_ways(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    batch, channels, length, states = shape
    elements = batch * channels * length
    case = Case("bidirectional_scan", dict(zip("BDLN", shape, strict=True)), elements, 2 * elements * states)

    def call(run: Callable[..., Any]) -> Call:
        draw = Draw(device, dtype)
        tensors = scan_tensors(draw, batch, channels, length, states)
        tensors |= scan_tensors(draw, batch, channels, length, states, "_b")
        return Call(
            lambda **t: run(**t, delta_softplus=True), {**tensors, "z": gate(draw, batch, length, channels)}
        )

    def peer() -> Call:
        """Two scans, the second on flipped tensors, as the official Vim makes them."""
        draw = Draw(device, dtype)
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        ahead = scan_tensors(draw, batch, channels, length, states)
        back = scan_tensors(draw, batch, channels, length, states, "_b")
        z = gate(draw, batch, length, channels)
        tensors = dict(zip(names, channels_first(ahead, z), strict=True))
        turned = zip(names, channels_first(back, z, "_b"), strict=True)
        tensors |= {f"{name}_b": x for name, x in turned if name != "z"}

        def run(**t: Tensor) -> Tensor:
            scan = peers.selective_scan()
            forth = scan(*(t[name] for name in names))
            per_token = ("u", "delta", "B", "C")
            flipped = (
                t["z"].flip(-1)
                if name == "z"
                else t[f"{name}_b"].flip(-1)
                if name in per_token
                else t[f"{name}_b"]
                for name in names
            )
            return (forth + scan(*flipped).flip(-1)) / 2

        return Call(run, tensors)

    case.calls[OURS] = lambda: call(bidirectional_scan)
    if device.type == "cuda":
        case.calls[PLAIN] = lambda: call(plain(bidirectional_scan))
        if peers.selective_scan() is not None:
            case.calls["mamba_ssm (CUDA), flips"] = peer
    return case
