# SPDX-License-Identifier: Apache-2.0
"""Norm, attention and MLP. Shapes: B rows, T new tokens, S tokens that they may read, D channels, H heads of
q and G of k and v, of P channels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .far_transmamba import HybridFar
from .scan_transmamba import Pass, wide

# tokens whose windows are read together
BLOCK = 128


class HybridRMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x / sqrt(mean(x²) + eps) in float32 or wider, back in x's type times the weight."""
        return self.weight * F.rms_norm(wide(x), x.shape[-1:], None, self.eps).to(x.dtype)


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

    def forward(self, u: Tensor, shared: Pass) -> Tensor:
        """What attention adds to the stream, of its norm u (B, T, D)."""
        q = self.q_proj(u).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (
            projection(u).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
            for projection in (self.k_proj, self.v_proj)
        )
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = _turned(q, shared), _turned(k, shared)
        known, places = {"keys": k, "values": v}, shared.places
        far = self.far if self.scan else None
        if far is not None:
            known["steps"] = far.step(u)
        if shared.cache is not None:
            window, sinks = self.nearby or (None, 0)
            # one more than is read where it goes to the scan next
            last = None if window is None else window - (far is None)
            known, places = shared.cache.add(self.layer, known, places, last, sinks)
        one_by_one = shared.joined and places is shared.places
        if one_by_one and self.nearby is not None and q.shape[2] > BLOCK + self.nearby[0]:
            mixed = self._in_blocks(q, known["keys"], known["values"], places)
        else:
            mixed = self._attended(q, known["keys"], known["values"], self._allowed(shared, places))
        if far is not None:
            average, share = far(u, q, known, places, self.nearby, shared)
            mixed = mixed + share * (average - mixed)
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

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, places: Tensor) -> Tensor:
        """What windows and first tokens say to all tokens of a text: some of them at a time, beside each
        other, so that time and memory are linear in their number."""
        window, sinks = self.nearby or (0, 0)
        rows, tokens = places.shape
        before, behind = window - 1, -tokens % BLOCK
        mine = F.pad(places, (0, behind), value=-1).unflatten(1, (-1, BLOCK))
        theirs = F.pad(places, (before, behind), value=-1).unfold(1, BLOCK + before, BLOCK)
        # the first tokens of a text, behind its padding; of a short one the last again, which is never far
        at = (places == 0).long().argmax(dim=1, keepdim=True) + torch.arange(sinks, device=places.device)
        at = at.clamp_max(tokens - 1)
        first = places.gather(1, at)[:, None, None]
        at = at[:, None, :, None].expand(-1, self.kv_heads, -1, k.shape[-1])

        def blocks(x: Tensor) -> Tensor:
            """(B n, G, S, P) of (B, G, T, P): first tokens, those of a window before a block, the block."""
            near = F.pad(x, (0, 0, before, behind)).unfold(2, BLOCK + before, BLOCK).permute(0, 2, 1, 4, 3)
            far = x.gather(2, at)[:, None].expand(-1, near.shape[1], -1, -1, -1)
            return torch.cat([far, near], dim=3).flatten(0, 1)

        own = mine[..., None]
        near = (theirs >= 0)[:, :, None] & (theirs[:, :, None] <= own) & (own - theirs[:, :, None] < window)
        allowed = torch.cat([(first >= 0) & (own - first >= window), near], dim=-1) | (own < 0)
        q = F.pad(q, (0, 0, 0, behind)).unflatten(2, (-1, BLOCK)).transpose(1, 2).flatten(0, 1)
        mixed = self._attended(q, blocks(k), blocks(v), allowed.flatten(0, 1)[:, None])
        return mixed.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3)[:, :, :tokens]

    def _allowed(self, shared: Pass, places: Tensor) -> Tensor | None:
        """(B, 1, T, S) whether a token may read another; None where causality alone says so. Padding reads
        anything, so that its softmax is over something."""
        near = self.nearby is None or self.nearby[0] >= shared.places.shape[1]
        if shared.plain and near and places is shared.places:
            return None
        mine, theirs = shared.places[:, :, None], places[:, None, :]
        allowed = (theirs >= 0) & (theirs <= mine)
        if self.nearby is not None:
            window, sinks = self.nearby
            allowed = allowed & ((mine - theirs < window) | (theirs < sinks))
        return (allowed | (mine < 0))[:, None]


def _turned(x: Tensor, shared: Pass) -> Tensor:
    """x (B, H, T, P) by its places."""
    left, right = x.chunk(2, dim=-1)
    return x * shared.cos.to(x.dtype) + torch.cat([-right, left], dim=-1) * shared.sin.to(x.dtype)


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
