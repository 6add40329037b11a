"""A hybrid's layers: attention or Mamba-2, then a SwiGLU MLP, by the names of transformers' classes.

Shapes: B rows, L tokens, D channels, H heads of P channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.output import Context
from ...layers.mixed import Mixed, Want
from ...views.rope import Rope, turned
from ...views.sublayers import attend, readable
from .architectures import Kind, architecture_of, head_size_of, normalises
from .mixer import HybridMixer
from .norms import GatedSilu, RMSNorm

PLAIN = Want()


@dataclass(frozen=True)
class Reading:
    """What all layers read beside the stream, made once a pass.

    waves:   cosine and sine of the tokens' positions, each (B, 1, L, P); None where no layer has attention
    allowed: (B, 1, L, L) bool, whether a token may read another; None where causality alone says so
    nearby:  the same in layers of window_attention
    """

    context: Context
    waves: tuple[Tensor, Tensor] | None = None
    allowed: Tensor | None = None
    nearby: Tensor | None = None

    @classmethod
    def of(cls, context: Context, x: Tensor, rope: Rope, window: tuple[int, int] | None) -> Reading:
        """Of a stream x (B, L, D).

        window: of layers of window_attention, with their sinks; None where there are none
        """
        positions = context.positions
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
        allowed = readable(context, True, None, x)
        nearby = None if window is None else _nearby(allowed, positions, *window)
        return cls(context, rope.waves(positions), allowed, nearby)


def _nearby(allowed: Tensor | None, places: Tensor, window: int, sinks: int) -> Tensor | None:
    """What of `allowed` is among the last `window` tokens or at the first `sinks` places of its document;
    places (B, L)."""
    length = places.shape[1]
    if window >= length:
        return allowed
    every = torch.ones(length, length, dtype=torch.bool, device=places.device)
    near = every.triu(1 - window) | (places < sinks)[:, None, None, :]
    return near & (every.tril() if allowed is None else allowed)


class Attention(nn.Module):
    """Causal, rotary, with fewer heads of k and v, and q and k normalised head by head before they are turned
    (as in Qwen3), where the configuration says so.

    windowed: whether it reads the last tokens and the first ones alone
    """

    def __init__(self, config: Any, windowed: bool) -> None:
        super().__init__()
        self.windowed = windowed
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        size, width, bias = head_size_of(config), config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, self.heads * size, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(self.heads * size, width, bias=bias)
        self.normed = normalises(config)
        if self.normed:
            self.q_norm = RMSNorm(size, config.rms_norm_eps)
            self.k_norm = RMSNorm(size, config.rms_norm_eps)

    def forward(self, u: Tensor, reading: Reading) -> Mixed:
        """u (B, L, D) -> `Mixed`, without inner tensors."""
        assert reading.waves is not None, "made for layers of attention"
        q = self.q_proj(u).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (
            projection(u).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
            for projection in (self.k_proj, self.v_proj)
        )
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        allowed = reading.nearby if self.windowed else reading.allowed
        mixed = attend(turned(q, *reading.waves), turned(k, *reading.waves), v, allowed)
        return Mixed(self.o_proj(mixed.transpose(1, 2).flatten(2)))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, width: int, neurons: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, neurons, bias=bias)
        self.up_proj = nn.Linear(width, neurons, bias=bias)
        self.down_proj = nn.Linear(neurons, width, bias=bias)
        self.gate = GatedSilu()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate(self.gate_proj(x), self.up_proj(x)))


class FusedSwiGLU(nn.Module):
    """The same with gate and up in one matrix, the gate first."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.input_linear = nn.Linear(width, 2 * neurons, bias=False)
        self.output_linear = nn.Linear(neurons, width, bias=False)
        self.gate = GatedSilu()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.input_linear(x).chunk(2, dim=-1)
        return self.output_linear(self.gate(gate, up))


class HybridLayer(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); the mixer is `self_attn` or `mamba`."""

    def __init__(self, config: Any, kind: Kind, half_life: float, tap: float) -> None:
        super().__init__()
        architecture, width, eps = architecture_of(config), config.hidden_size, config.rms_norm_eps
        self.kind = kind
        self._mlp_norm, self._mlp = architecture.mlp_norm, architecture.mlp
        self.input_layernorm = RMSNorm(width, eps, multiplied=True)
        if self.scans:
            self.mamba = HybridMixer(config, half_life, tap)
        else:
            self.self_attn = Attention(config, windowed=kind == "window_attention")
        self.add_module(architecture.mlp_norm, RMSNorm(width, eps, multiplied=True))
        self.neurons = config.shared_intermediate_size if architecture.fused else config.intermediate_size
        mlp: nn.Module
        if architecture.fused:
            mlp = FusedSwiGLU(width, self.neurons)
        else:
            mlp = SwiGLU(width, self.neurons, config.mlp_bias)
        self.add_module(architecture.mlp, mlp)

    @property
    def scans(self) -> bool:
        """Whether it has Mamba-2 in the place of attention."""
        return self.kind == "linear_attention"

    def forward(self, x: Tensor, reading: Reading, want: Want = PLAIN) -> tuple[Tensor, Mixed]:
        """The stream (B, L, D) after the layer, or what its mixer alone adds, and the mixer's record."""
        normed = self.input_layernorm(x)
        if self.scans:
            mixed = self.mamba(normed, reading.context, want.heads)
        else:
            mixed = self.self_attn(normed, reading)
        if want.alone:
            return mixed.output, mixed
        x = x + mixed.output
        return x + getattr(self, self._mlp)(getattr(self, self._mlp_norm)(x)), mixed
