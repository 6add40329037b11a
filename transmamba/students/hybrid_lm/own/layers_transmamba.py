# SPDX-License-Identifier: Apache-2.0
"""Norm, attention and MLP. Shapes: B rows, T new tokens, S tokens that they may read, D channels, H heads of
q and G of k and v, of P channels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks_transmamba import added
from .far_transmamba import HybridFar, left_of
from .scan_transmamba import Pass


class HybridRMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x / sqrt(mean(x²) + eps), which torch finds in float32 or wider, in x's type times the weight."""
        return self.weight * F.rms_norm(x, x.shape[-1:], None, self.eps)


class HybridAttention(nn.Module):
    """Causal and rotary; in a layer of window_attention of the last tokens and the first ones alone, in one
    of window_mamba beside a scan of those between."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads = layer, config.num_attention_heads, config.num_key_value_heads
        kind = config.layer_kinds[layer]
        self.nearby = None if kind == "full_attention" else (config.window, config.sinks)
        self.far = HybridFar(config, layer) if kind == "window_mamba" else None
        self.scan = config.scan
        size, width, bias = config.head_dim, config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, self.heads * size, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(self.heads * size, width, bias=bias)
        self.normed = config.qk_norm
        if self.normed:
            self.q_norm = HybridRMSNorm(size, config.rms_norm_eps)
            self.k_norm = HybridRMSNorm(size, config.rms_norm_eps)

    @property
    def remembered(self) -> tuple[int | None, int]:
        """How many of the last tokens a cache holds for it, None for all, and of the first ones: one more
        than is read where it goes to the scan next."""
        if self.nearby is None:
            return None, 0
        window, sinks = self.nearby
        return window - (self.far is None or not self.scan), sinks

    def forward(self, u: Tensor, shared: Pass) -> Tensor:
        """What attention adds to the stream, of its norm u (B, T, D)."""
        q, k, v = (
            projection(u).unflatten(-1, (heads, -1)).transpose(1, 2)
            for projection, heads in (
                (self.q_proj, self.heads),
                (self.k_proj, self.kv_heads),
                (self.v_proj, self.kv_heads),
            )
        )
        if self.normed:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)  # wider under autocast
        q, k = _turned(torch.cat([q, k], dim=1), shared).split([self.heads, self.kv_heads], dim=1)
        new = {"keys": k, "values": v}
        far = self.far if self.scan else None
        if far is not None:
            new["steps"] = far.step(u)
        known = shared.known(*self.remembered)
        if shared.cache is not None:
            new = shared.cache.add(self.layer, new, known)
        if shared.blocks is not None and self.nearby is not None:
            mixed = shared.blocks.attend(q, new["keys"], new["values"], self._attended)
        else:
            allowed = known.once(("allowed", q.dtype), lambda: self._allowed(shared, known.places, q.dtype))
            mixed = self._attended(q, new["keys"], new["values"], allowed)
        if far is not None:
            assert self.nearby is not None, "a scan lies behind a window"
            window, sinks = self.nearby
            left = known.once("left", lambda: left_of(known.places, shared, window, sinks))
            average, share = far(u, q, new, left, shared)
            mixed = mixed.lerp(average.to(mixed.dtype), share.to(mixed.dtype))
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        times = self.heads // self.kv_heads
        if q.shape[2] == 1 and times > 1:
            # heads that share one of k and v read it as tokens of one head do: nothing is copied
            together = q.unflatten(1, (-1, times)).squeeze(3)
            mixed = F.scaled_dot_product_attention(together, k, v, attn_mask=allowed)
            return mixed.flatten(1, 2).unsqueeze(2)
        if allowed is not None and times > 1:
            # no fast kernel has both a mask and shared heads: the slow one would write all of softmax down
            k, v, times = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1), 1
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, is_causal=allowed is None, enable_gqa=times > 1
        )

    def _allowed(self, shared: Pass, places: Tensor, dtype: torch.dtype) -> Tensor | None:
        """(B, 1, T, S) 0 where a token may read another, and -inf; None where causality alone says so.
        Padding reads anything, so that its softmax is over something."""
        near = self.nearby is None or self.nearby[0] >= shared.places.shape[1]
        if shared.plain and near and places is shared.places:
            return None
        mine, theirs = shared.places[:, :, None], places[:, None, :]
        allowed = (theirs >= 0) & (theirs <= mine)
        if self.nearby is not None:
            window, sinks = self.nearby
            allowed = allowed & ((mine - theirs < window) | (theirs < sinks))
        return added((allowed | (mine < 0))[:, None], dtype)


def _turned(x: Tensor, shared: Pass) -> Tensor:
    """x (B, H, T, P) by its places."""
    half = x.roll(x.shape[-1] // 2, dims=-1)
    return x * shared.cos.to(x.dtype) + half * shared.sin.to(x.dtype)


class HybridMLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, neurons = config.hidden_size, config.intermediate_size
        self.gated = config.mlp == "swiglu"
        bias = config.mlp_bias and self.gated
        if self.gated:
            self.gate_proj = nn.Linear(width, neurons, bias=bias)
        self.up_proj = nn.Linear(width, neurons, bias=bias)
        self.down_proj = nn.Linear(neurons, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.down_proj(F.relu(self.up_proj(x)))
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
