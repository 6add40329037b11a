"""Mamba-2 mixers in the place of softmax attention, with attention's heads.

[proposal, not the paper's] C takes the queries' place, B the keys', x the values', the output projection
stays; the state size is the head size. The two directions share all that attention shares: the projections, a
centred convolution and delta; only the decays are their own. `causal.py` has the mixer of one direction.
Shapes: B images, L tokens, D = H * P channels, H heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transmamba_kernels import bidirectional_conv1d, bidirectional_ssd

from .bidirectional import NEUTRAL_GATE
from .mixed import Mixed


class SSDMixer(nn.Module):
    """What mixers of one direction and of two share: attention's projections, gate, delta, where they begin.

    length: sets where delta starts: 1 / length, so that a sum over so many tokens begins as an average
    taps:   of the convolution; `own` is the one that reads the token itself
    decays: names of the parameters (H,) that hold a direction's decay rates
    """

    A_log: nn.Parameter

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        length: int,
        taps: int,
        own: int,
        decays: tuple[str, ...],
        qkv_bias: bool = True,
        proj_bias: bool = True,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)  # C, B, x in the order of q, k, v
        self.conv1d = nn.Conv1d(3 * dim, 3 * dim, taps, padding=own, groups=3 * dim)
        self.gate = nn.Linear(dim, dim)
        self.dt_proj = nn.Linear(dim, num_heads)
        for name in decays:
            self.register_parameter(name, nn.Parameter(torch.empty(num_heads)))
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.length, self.own, self.decays = length, own, decays
        self.neutral_()

    @torch.no_grad()
    def neutral_(self) -> None:
        """Identity convolution, open gate, delta = 1 / length, decays of 1/4 to 4 lengths."""
        self.conv1d.weight.zero_()
        self.conv1d.weight[:, 0, self.own] = 1.0
        nn.init.zeros_(self.conv1d.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, NEUTRAL_GATE)
        nn.init.zeros_(self.dt_proj.weight)
        nn.init.constant_(self.dt_proj.bias, math.log(math.expm1(1 / self.length)))
        rates = torch.logspace(-2, 2, self.num_heads, base=2) if self.num_heads > 1 else torch.ones(1)
        for name in self.decays:
            self.get_parameter(name).copy_(rates.log())

    def written(self) -> Tensor:
        """The matrix (D, D) through which it writes; an adapter around it gives its own, changed one."""
        return self.proj.weight

    def heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C, B and x, each (B, L, H, P), of what the convolution made (B, L, 3D)."""
        C, B, x = (part.unflatten(-1, (self.num_heads, self.head_dim)) for part in mixed.chunk(3, dim=-1))
        return C, B, x


class BidirectionalSSD(SSDMixer):
    """Drop-in for timm's `Attention` in a vision transformer block; `length` is an image's."""

    A_b_log: nn.Parameter

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        length: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        conv_kernel: int = 3,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            length=length,
            taps=conv_kernel,
            own=conv_kernel // 2,
            decays=("A_log", "A_b_log"),
            qkv_bias=qkv_bias,
            proj_bias=proj_bias,
        )

    def _convolve(self, x: Tensor) -> Tensor:
        """`conv1d` of x (B, L, 3D), channels last throughout, which nn.Conv1d is not.

        The taps up to the centre are a causal convolution, those behind it an anticausal one.
        """
        weight, ahead = self.conv1d.weight[:, 0], self.conv1d.kernel_size[0] // 2 + 1
        weight_b = F.pad(weight[:, ahead:].flip(1), (0, 1))  # 0 for the token itself
        y, y_b = bidirectional_conv1d(x, weight[:, :ahead], self.conv1d.bias, weight_b, None)
        return y + y_b

    def forward(self, u: Tensor, *, branches: bool = False, tokens: Tensor | None = None) -> Mixed:
        """u (B, L, D) -> `Mixed`; `branches` asks for its `half`, on `tokens` (positions) or on all."""
        C, B, x = self.heads(self._convolve(self.qkv(u)))
        gate = F.silu(self.gate(u))
        y: Any = bidirectional_ssd(
            x,
            F.linear(u, self.dt_proj.weight),
            -self.A_log.float().exp(),
            B,
            C * self.head_dim**-0.5,
            A_b=-self.A_b_log.float().exp(),
            delta_bias=self.dt_proj.bias.float(),  # in float32: bf16 steps by 3 % where it starts
            delta_softplus=True,
            return_branches=branches,
            branch_tokens=tokens,
        )
        parts = {"B": B.flatten(2), "C": C.flatten(2)}
        if not branches:
            return Mixed(self.proj(y.flatten(2) * gate), parts=parts)
        y, y_f, y_b = y
        half = ((y_f - y_b) * 0.5).flatten(2) * (gate if tokens is None else gate.index_select(1, tokens))
        return Mixed(self.proj(y.flatten(2) * gate), half=half, parts=parts)


class SSDAttention(BidirectionalSSD):
    """`BidirectionalSSD` with the call signature of timm's `Attention`."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:  # type: ignore[override]
        if attn_mask is not None or is_causal:
            raise ValueError("an SSD mixer takes no attention mask")
        return super().forward(x).output

    def mix(self, u: Tensor, *, branches: bool = False, tokens: Tensor | None = None) -> Mixed:
        return super().forward(u, branches=branches, tokens=tokens)
