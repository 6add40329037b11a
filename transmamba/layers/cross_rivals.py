"""What cross-Mamba is measured by: FiLM and cross-attention in its place, behind the same gate and norms, of
as many parameters.

Shapes: B rows, N visual tokens of D channels, M prompt tokens of E channels, H heads of P channels (H P is
the width).
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from .cross_base import Crossed, CrossMambaConfig
from .prompt import Prompt


class Film(Crossed):
    """y = gamma x + beta of each visual token's x, with gamma and beta of the prompt's mean (FiLM, arXiv
    1709.07871; there of a recurrent network's last state). gamma is 1 + what is projected.

    Of words it knows their mean alone: linear in both lengths. Without a prompt the biases are left.
    """

    def __init__(self, dim: int, language_dim: int, config: CrossMambaConfig) -> None:
        super().__init__(dim, language_dim, config)
        self.in_proj = nn.Linear(dim, self.width)  # x
        self.film = nn.Linear(language_dim, 2 * self.width)  # gamma - 1 and beta

    def _mix(self, u: Tensor, prompt: Prompt) -> Tensor:
        gamma, beta = self.film(prompt.mean(prompt.tokens)).chunk(2, dim=-1)
        return ((1 + gamma) * self.in_proj(u) + beta).unflatten(-1, (self.heads, -1))


class CrossAttention(Crossed):
    """y = softmax(Q K^T / sqrt(P)) V, Q of visual tokens, K and V of the prompt's words, behind a tanh gate
    that starts at 0 (Flamingo, arXiv 2204.14198, section 2.2, where words attend to the picture).

    Cost is the product of both lengths. A row without a prompt stays as it is.
    """

    def __init__(self, dim: int, language_dim: int, config: CrossMambaConfig) -> None:
        super().__init__(dim, language_dim, config)
        self.q_proj = nn.Linear(dim, self.width)
        self.k_proj = nn.Linear(language_dim, self.width)
        self.v_proj = nn.Linear(language_dim, self.width)

    def _mix(self, u: Tensor, prompt: Prompt) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, u), (self.k_proj, prompt.tokens), (self.v_proj, prompt.tokens))
        )
        some = (prompt.lengths > 0).view(-1, 1, 1, 1)
        # a row without words attends to its padding, which is then left out: a softmax over nothing is NaN
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=prompt.real[:, None, None] | ~some)
        return made.masked_fill(~some, 0).transpose(1, 2)


RIVALS: dict[str, type[Film] | type[CrossAttention]] = {"film": Film, "attention": CrossAttention}


def of_equal_size(dim: int, language_dim: int, config: CrossMambaConfig) -> CrossMambaConfig:
    """With the width, a multiple of num_heads, at which a rival comes nearest to the parameters of mode
    `state`; as it is where a width is written, and of the modes of cross-Mamba."""
    if config.mode not in RIVALS or config.width is not None:
        return config
    written = config.num_heads * config.state_size + dim
    state = written * (language_dim + 1 + config.conv_kernel + 1)  # write and conv1d
    state += (dim + 1) * config.num_heads * config.state_size  # read
    state += config.num_heads * (language_dim + 1 + 2)  # dt_proj and decays
    state += (2 * dim + 2) * dim  # gate, norm_y, proj
    own = 2 * (language_dim + 1) + (dim + 1)  # film, in_proj; k_proj and v_proj, q_proj
    heads = round(state / (own + 2 * dim + 2) / config.num_heads)
    return replace(config, width=max(1, heads) * config.num_heads)
