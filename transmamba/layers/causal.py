"""A causal Mamba-2 mixer in the place of a text tower's attention: `BidirectionalSSD` in one direction.

[proposal, not the paper's] Shapes: B texts, L tokens, D = H * P channels, H heads, N = P states.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from transmamba_kernels import causal_conv1d, ssd_scan

from ..core.output import Context
from .mamba2 import SSDMixer
from .mixed import Mixed

NO_CONTEXT = Context()
# softplus of it, with any bias that a delta has, is 0 in every precision; finite, so that no gradient is NaN
STILL = -1e4


class CausalSSD(SSDMixer):
    """Drop-in for causal attention: a token reads itself and those before it.

    So right padding reaches no real token. Of a `Context`, a masked token adds nothing to the state and lets
    none of it decay (the convolution reads a zero in its place), and state and convolution begin anew where
    the segment changes. Positions are not read: a scan has an order.
    """

    def __init__(self, dim: int, num_heads: int, *, length: int, conv_kernel: int = 4) -> None:
        super().__init__(
            dim, num_heads, length=length, taps=conv_kernel, own=conv_kernel - 1, decays=("A_log",)
        )

    def forward(self, u: Tensor, context: Context = NO_CONTEXT) -> Mixed:
        """u (B, L, D) -> `Mixed`, whose `half` is None: there is one direction."""
        mixed, delta = self.qkv(u), F.linear(u, self.dt_proj.weight)
        if context.mask is not None:
            padding = ~context.mask.unsqueeze(-1)
            mixed, delta = mixed.masked_fill(padding, 0), delta.masked_fill(padding, STILL)
        conv = self.conv1d
        C, B, x = self.heads(causal_conv1d(mixed, conv.weight[:, 0], conv.bias, seq_idx=context.segments))
        y = ssd_scan(
            x,
            delta,
            -self.A_log.float().exp(),
            B,
            C * self.head_dim**-0.5,
            delta_bias=self.dt_proj.bias.float(),  # in float32: bf16 steps by 3 % where it starts
            delta_softplus=True,
            seq_idx=context.segments,
        )
        output = self.proj(y.flatten(2) * F.silu(self.gate(u)))
        return Mixed(output, parts={"B": B.flatten(2), "C": C.flatten(2)})
