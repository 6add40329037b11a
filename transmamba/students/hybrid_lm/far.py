"""What lies beyond a layer's window: Mamba-2's scan of all that has left it, as an average of values.

Softmax over all tokens is (1 - p) times softmax over the near ones plus p times softmax over the far ones, p
being the mass of these. The near part is exact; of the far one, head by head,

    S_i = exp(dt_e A) S_(i-1) + dt_e v_e b_eᵀ        z_i = exp(dt_e A) z_(i-1) + dt_e b_e
    far_i = S_i c_i / (z_i · c_i)                    g_i = sigmoid(gate(u_i) + log(z_i · 1))
    y_i = (1 - g_i) near_i + g_i far_i

where e is the token that has just left i's window, c = softmax(q M) and b = softmax(k M') of queries and keys
as attention turns them: positive features of N channels (Hedgehog, arXiv 2402.04347), so that far is an
average of values; they add up to 1, so that z · 1 counts the far tokens. Heads of q that share one of k and v
share its state, too [proposal: the gate, that the scan begins behind the window, and the shared states].
Mamba-2: arXiv 2405.21060. Shapes: B rows, L tokens, D channels, H heads of q, G of k and v, P channels and
N = P states a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transmamba_kernels import ssd_scan

from ...core.output import wide
from .architectures import head_size_of
from .nearby import Nearby

# of features: the best of 1, 2, 3 and 4.5 for the first errors of three layers of SmolLM2-135M [proposal]
SHARP = 2.0
# of a gate that nothing has fitted yet: a thousand far tokens weigh about a hundredth
SHUT = -11.5


class FarScan(nn.Module):
    """queries, keys: M (H, P, N) and M' (G, P, N); gate and steps: of the stream's norm, a number of each
    head of q, and dt (before its softplus) of each of k and v; A_log (G,)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        heads, groups, size = config.num_attention_heads, config.num_key_value_heads, head_size_of(config)
        self.queries = nn.Parameter(torch.empty(heads, size, size))
        self.keys = nn.Parameter(torch.empty(groups, size, size))
        self.gate = nn.Linear(config.hidden_size, heads)
        self.steps = nn.Linear(config.hidden_size, groups)
        self.A_log = nn.Parameter(torch.empty(groups))

    @torch.no_grad()
    def neutral_(self, decay_log: float) -> None:
        """Features of the channels themselves, steps of 1, this A_log, and gates all but shut."""
        for maps in (self.queries, self.keys):
            maps.copy_(SHARP * torch.eye(maps.shape[-1]))
        for linear, bias in ((self.gate, SHUT), (self.steps, math.log(math.expm1(1.0)))):
            linear.weight.zero_()
            linear.bias.fill_(bias)
        self.A_log.fill_(decay_log)

    def no_weight_decay(self) -> set[str]:
        return {"queries", "keys"}  # which would become features that tell no tokens apart

    def forward(
        self, u: Tensor, q: Tensor, k: Tensor, v: Tensor, near: Nearby, segments: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """S c (B, H, L, P), of the stream's norm u (B, L, D), q (B, H, L, P), k and v (B, G, L, P); the share
        g of far tokens and what S c is weighed with to have it, g / (z · c), (B, H, L, 1). All are 0 where
        nothing is far."""
        y, mass, count = self._summed(u, q, k, v, near, segments)
        share = share_of(wide(self.gate(u)).mT, count)
        share, weight = (part.to(y.dtype)[..., None] for part in (share, share / mass))
        return y, share, weight

    def averaged(
        self, u: Tensor, q: Tensor, k: Tensor, v: Tensor, near: Nearby, segments: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """far (B, H, L, P), and how many tokens it is of (B, H, L), both at least in float32."""
        y, mass, count = self._summed(u, q, k, v, near, segments)
        return wide(y) / mass[..., None], count

    def _summed(
        self, u: Tensor, q: Tensor, k: Tensor, v: Tensor, near: Nearby, segments: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """S c (B, H, L, P) in v's type, in which scans are several times as fast in bfloat16 (of float16,
        which has not the range of g / (z · c), in float32), z · c, 1 where nothing is far, and z · 1,
        (B, H, L) at least in float32: of values of 1, and of features of 1, for those add up to it."""
        kept = torch.float32 if v.dtype == torch.float16 else v.dtype
        q, k, v = (part.to(kept) for part in (q, k, v))  # norms leave q and k wider under autocast
        times = q.shape[1] // k.shape[1]
        step = nn.functional.softplus(wide(self.steps(u)))
        left = near.left.expand(len(u), -1)[..., None]
        step = torch.where(left, _moved(step, near.window), 0)
        rate = -wide(self.A_log).exp()
        b, x = (_moved(part.transpose(1, 2), near.window) for part in (self._features(k, self.keys), v))
        c = self._features(q, self.queries).transpose(1, 2)
        alone = torch.ones_like(step)[..., None]
        count = ssd_scan(alone, step, rate, alone[:, :, :1], alone[:, :, :1], seq_idx=segments)
        x, b, step, count = (part.repeat_interleave(times, dim=2) for part in (x, b, step, count))
        rate = rate.repeat_interleave(times)
        y = ssd_scan(x, step, rate, b, c, seq_idx=segments)
        mass = wide(ssd_scan(x.new_ones(*x.shape[:3], 1), step, rate, b, c, seq_idx=segments))[..., 0].mT
        return y.transpose(1, 2), torch.where(mass > 0, mass, 1), count[..., 0].mT

    @staticmethod
    def _features(x: Tensor, maps: Tensor) -> Tensor:
        """In x's type, which adds up in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return (x @ maps.to(x.dtype)).softmax(dim=-1)


def share_of(gate: Tensor, count: Tensor) -> Tensor:
    """g (B, H, L) of its logit without the count, and the count, alike; 0 where nothing is far."""
    there = count > 0
    # the logarithm of nothing has no gradient
    return torch.where(there, torch.sigmoid(gate + torch.where(there, count, 1).log()), 0)


def _moved(x: Tensor, window: int) -> Tensor:
    """x (B, L, ...) `window` tokens later, zeros first."""
    kept = x[:, : max(0, x.shape[1] - window)]
    return torch.cat([x.new_zeros(len(x), x.shape[1] - kept.shape[1], *x.shape[2:]), kept], dim=1)
