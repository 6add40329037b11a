"""The memory-bound operators: convolutions, decode steps and the divergence over a vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import causal_conv1d, selective_state_update, softmax_kl, ssd_state_update
from ..bidirectional_conv1d import bidirectional_conv1d
from . import peers
from .case import OURS, PLAIN, Call, Case, Draw, Tensors, plain
from .scan_cases import gate, scan_tensors
from .ssd_cases import ssd_tensors


def conv(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    batch, length, channels, taps = shape
    elements = batch * length * channels
    case = Case("causal_conv1d", dict(zip("BLDK", shape, strict=True)), elements, elements)

    def tensors() -> Tensors:
        draw = Draw(device, dtype)
        wide = draw(batch, length, 2 * channels)
        filters = {"weight": draw(channels, taps, wide=True), "bias": draw(channels, wide=True)}
        return {"x": wide[..., :channels], **filters}

    def by_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), (taps - 1, 0))
        return F.silu(F.conv1d(padded, weight[:, None].to(x.dtype), bias.to(x.dtype), groups=channels))

    case.calls[OURS] = lambda: Call(lambda **t: causal_conv1d(**t, activation="silu"), tensors())
    case.calls["torch conv1d"] = lambda: Call(by_torch, tensors())
    if device.type == "cuda" and peers.conv1d() is not None:

        def peer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return peers.conv1d()(x.transpose(1, 2), weight, bias)

        case.calls["causal-conv1d (CUDA)"] = lambda: Call(peer, tensors())
    return case


def both_convs(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    batch, length, channels, taps = shape
    elements = batch * length * channels
    case = Case("bidirectional_conv1d", dict(zip("BLDK", shape, strict=True)), elements, 2 * elements)

    def tensors() -> Tensors:
        draw = Draw(device, dtype)
        found = {"x": draw(batch, length, 2 * channels)[..., :channels]}
        for suffix in ("", "_b"):
            found[f"weight{suffix}"] = draw(channels, taps, wide=True)
            found[f"bias{suffix}"] = draw(channels, wide=True)
        return found

    def separate(
        x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
    ) -> tuple[Tensor, ...]:
        y = causal_conv1d(x, weight, bias, "silu")
        return y, causal_conv1d(x, weight_b, bias_b, "silu", reverse=True)

    case.calls[OURS] = lambda: Call(lambda **t: bidirectional_conv1d(**t, activation="silu"), tensors())
    case.calls["two calls of causal_conv1d"] = lambda: Call(separate, tensors())
    return case


def selective_update(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    batch, channels, states = shape
    size = math.prod(shape)
    case = Case("selective_state_update", dict(zip("BDN", shape, strict=True)), size, size)

    def tensors() -> Tensors:
        draw = Draw(device, dtype)
        tokens = scan_tensors(draw, batch, channels, 1, states)
        tokens = {n: x[:, 0] if n in ("u", "delta", "B", "C") else x for n, x in tokens.items()}
        return {"state": draw(*shape, wide=True), **tokens, "z": gate(draw, batch, 1, channels)[:, 0]}

    def peer(state: Tensor, u: Tensor, delta: Tensor, delta_bias: Tensor, **rest: Tensor) -> Tensor:
        return peers.state_update()(state, u, delta, **rest, dt_bias=delta_bias, dt_softplus=True)

    def step(**t: Tensor) -> Tensor:
        return selective_state_update(**t, delta_softplus=True)

    case.calls[OURS] = lambda: Call(step, tensors(), False, 4 * size)
    if device.type == "cuda":
        case.calls[PLAIN] = lambda: Call(plain(step), tensors(), False, 4 * size)
        if peers.state_update() is not None:
            case.calls["mamba_ssm (Triton)"] = lambda: Call(peer, tensors(), False, 4 * size)
    return case


def ssd_update(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    batch, heads, width, states = shape
    size = math.prod(shape)
    case = Case("ssd_state_update", dict(zip("BHPN", shape, strict=True)), size, 0)

    def tensors() -> Tensors:
        draw = Draw(device, dtype)
        tokens = ssd_tensors(draw, batch, 1, heads, width, states, 1)
        tokens = {n: x[:, 0] if n in ("x", "delta", "B", "C") else x for n, x in tokens.items()}
        return {"state": draw(*shape, wide=True), **tokens}

    def peer(
        state: Tensor, x: Tensor, delta: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, **rest: Any
    ) -> Tensor:
        # Its names for one rate a head: expanded, so that its kernel sees strides of 0.
        return peers.state_update()(
            state,
            x,
            delta[..., None].expand(-1, -1, width),
            A[:, None, None].expand(-1, width, states),
            **rest,
            D=D[:, None].expand(-1, width),
            dt_bias=delta_bias[:, None].expand(-1, width),
            dt_softplus=True,
        )

    def step(**t: Tensor) -> Tensor:
        return ssd_state_update(**t, delta_softplus=True)

    case.calls[OURS] = lambda: Call(step, tensors(), False, 4 * size)
    if device.type == "cuda":
        case.calls[PLAIN] = lambda: Call(plain(step), tensors(), False, 4 * size)
        if peers.state_update() is not None:
            case.calls["mamba_ssm (Triton)"] = lambda: Call(peer, tensors(), False, 4 * size)
    return case


def divergence(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    size = math.prod(shape)
    case = Case("softmax_kl", dict(zip("NV", shape, strict=True)), size, 2 * size)

    def call(run: Callable[[Tensor, Tensor], Tensor]) -> Call:
        draw = Draw(device, dtype)
        teacher = draw(*shape)  # it has no gradient, so that it is none of the call's tensors
        return Call(
            lambda student: run(student, teacher), {"student": draw(*shape)}, bytes_again=teacher.nbytes
        )

    def by_torch(student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = (F.log_softmax(x.float(), dim=-1) for x in (student, teacher))
        return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)

    case.calls[OURS] = lambda: call(softmax_kl)
    case.calls["torch log_softmax, kl_div"] = lambda: call(by_torch)
    return case
