"""What all modes of cross-Mamba, and its rivals, share: options, gate, norms, step sizes. The modes are in
cross_mamba.py, the rivals in cross_rivals.py.

Shapes: B rows, N visual tokens of D channels, L language tokens of E channels, M of them the longest prompt,
H heads of P channels (H P is the width), S states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.output import wide
from ..errors import UserError, refuse_all, suggest
from .bidirectional import NEUTRAL_GATE
from .prompt import Prompt

Mode = Literal["state", "prefix", "reported", "film", "attention"]


@dataclass(frozen=True, kw_only=True)
class CrossMambaConfig:
    """mode: `state` [proposal], language writes a state, in both directions, and every visual token reads it;
        `prefix` [proposal], one scan over the prompt and then the visual tokens, which write too; `reported`
        [reported, at second hand: only Q, K, V and delta from the other modality], visual tokens scanned in
        both directions, in steps whose size the prompt sets. Two rivals to measure these by: `film`, the
        prompt's mean scales and shifts the visual channels; `attention`, visual tokens attend to the prompt's
        words
    num_heads:   each with its own decays, B and C; of `attention` its heads
    state_size:  states a channel, S
    width:       channels of the scan, a multiple of num_heads; null is the visual stream's. Of `film` and
        `attention` null is the width at which they have as many parameters as `state` by the other keys
    conv_kernel: taps of the convolution before the scan; 1 is none
    length:      delta starts at 1 / length, so that a sum over so many tokens begins as an average: about the
                 tokens that are scanned, of the prompt (`state`), the picture (`reported`), both (`prefix`)
    """

    mode: Mode = "state"
    num_heads: int = 4
    state_size: int = 64
    width: int | None = None
    conv_kernel: int = 4
    length: int = 64

    def __post_init__(self) -> None:
        known = get_args(Mode)
        problems = []
        if self.mode not in known:
            problems.append(f"mode is {self.mode!r}{suggest(str(self.mode), known)}")
        for name in ("num_heads", "state_size", "conv_kernel", "length"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; write a number of at least 1")
        if self.width is not None and self.width < 1:
            problems.append(f"width is {self.width}; write a number of at least 1, or null")
        refuse_all(problems)


class Crossed(nn.Module):
    """vision + tanh(g) W norm(y silu(z)), where a mode says what y is, and g starts at 0.

    An RMSNorm stands before the output projection, as in Mamba-2: without it y begins as a mean of many
    products and is so small that g has next to nothing to learn from.
    """

    def __init__(self, dim: int, language_dim: int, config: CrossMambaConfig) -> None:
        super().__init__()
        self.dim, self.language_dim, self.config = dim, language_dim, config
        self.width, self.heads = config.width or dim, config.num_heads
        if self.width % self.heads:
            raise UserError(f"width is {self.width}; write a multiple of num_heads, {self.heads}")
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.norm_language = nn.RMSNorm(language_dim, eps=1e-6)
        self.gate = nn.Linear(dim, self.width)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, NEUTRAL_GATE)
        self.norm_y = nn.RMSNorm(self.width, eps=1e-6)
        self.proj = nn.Linear(self.width, dim, bias=False)
        self.scale = nn.Parameter(torch.zeros(1))  # g; not a scalar, which FSDP2 does not shard

    def forward(
        self,
        vision: Tensor,
        language: Tensor | Prompt,
        mask: Tensor | None = None,
        *,
        longest: int | None = None,
    ) -> Tensor:
        """vision (B, N, D), language (B, L, E), mask (B, L) bool, True on the prompt -> (B, N, D). Or, in the
        place of both, their `Prompt`: several modules that read one have it cut out once.

        Only the prompt is read: answers and padding have no part in the result. `longest`, a bound on the
        prompts' lengths, saves asking the device for it. A row without a prompt: `state` leaves it as it is.

        Raises UserError for shapes or dtypes that do not fit.
        """
        self._check(vision, language.tokens if isinstance(language, Prompt) else language)
        if isinstance(language, Prompt):
            prompt = language
        else:
            assert mask is not None, "which words of the language are the prompt"
            prompt = Prompt.of(language, mask, longest=longest)
        if not vision.numel():
            return vision
        prompt = Prompt(tokens=normed(self.norm_language, prompt.tokens), lengths=prompt.lengths)
        u = normed(self.norm, vision)
        y = self._mix(u, prompt).flatten(2) * F.silu(self.gate(u))
        return vision + (self.scale.tanh() * self.proj(normed(self.norm_y, y))).to(vision.dtype)

    def _mix(self, u: Tensor, prompt: Prompt) -> Tensor:
        """y (B, N, H, P) of the normed visual tokens u (B, N, D) and the normed prompt."""
        raise NotImplementedError

    def _check(self, vision: Tensor, language: Tensor) -> None:
        if vision.dim() != 3 or vision.shape[2] != self.dim:
            raise UserError(f"vision: shape {tuple(vision.shape)}, expected (B, N, {self.dim})")
        if language.dim() != 3 or language.shape[2] != self.language_dim:
            raise UserError(f"language: shape {tuple(language.shape)}, expected (B, L, {self.language_dim})")
        if len(vision) != len(language):
            rows = f"{len(language)} rows, vision has {len(vision)}"
            raise UserError(f"language: {rows}; give each picture its own text's row")


class CrossMamba(Crossed):
    """One whose y is read of a scan's states; `decays` names the rates of its directions."""

    def __init__(
        self, dim: int, language_dim: int, config: CrossMambaConfig, decays: tuple[str, ...]
    ) -> None:
        super().__init__(dim, language_dim, config)
        self.states = config.state_size
        self.dt_proj = step_sizes(language_dim, self.heads, config.length)
        rates = torch.logspace(-2, 2, self.heads, base=2) if self.heads > 1 else torch.ones(1)
        for name in decays:
            self.register_parameter(name, nn.Parameter(rates.log()))

    def decay(self, name: str) -> Tensor:
        """A (H,), negative."""
        return -wide(self.get_parameter(name)).exp()

    def written(self, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """B (B, L, H, S) and x (B, L, H, P) of (B, L, H S + H P)."""
        B, x = mixed.split([self.heads * self.states, self.width], dim=-1)
        return B.unflatten(-1, (self.heads, -1)), x.unflatten(-1, (self.heads, -1))

    def queries(self, mixed: Tensor) -> Tensor:
        """C (B, L, H, S), scaled as attention scales its queries."""
        return mixed.unflatten(-1, (self.heads, self.states)) * self.states**-0.5


def step_sizes(channels: int, heads: int, length: int) -> nn.Linear:
    """The projection to raw step sizes: softplus of its bias is 1 / length, and tokens differ a little."""
    layer = nn.Linear(channels, heads)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.constant_(layer.bias, math.log(math.expm1(1 / length)))
    return layer


def convolution(channels: int, taps: int) -> nn.Conv1d:
    """Holds the parameters of a depthwise convolution that starts as the identity."""
    layer = nn.Conv1d(channels, channels, taps, groups=channels)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight[:, 0, -1] = 1.0
    return layer


def normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """In the norm's own precision, whatever the stream's; torch warns of two and takes a slower path."""
    return norm(x.to(norm.weight.dtype))
