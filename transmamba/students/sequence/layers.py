"""Layers of a sequence model: one pre-norm residual sublayer each.

Shapes: B rows, L tokens, D channels, H heads of P channels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.output import Context
from ...errors import refuse_all
from ...layers.mamba1 import SelectiveMixer
from ...layers.mixed import Mixed, Want
from ...layers.s4d import S4DMixer
from ...views.sublayers import attend
from ..hybrid_lm.mixer import HybridMixer

# how a Mamba-2 layer begins
Mixers = Literal["attention", "mamba2", "random"]
PLAIN = Want()
NO_CONTEXT = Context()
EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class SequenceShape:
    """What a sequence model is made of; plain numbers and words, which its config.json holds.

    inputs, outputs: numbers of a point, and that are predicted at each
    pattern:   its layers, a letter each
    positions: how many are learnt; 0 for none, which reads any length
    length:    the longest sequence that it was made for
    """

    inputs: int
    outputs: int
    length: int
    pattern: str
    width: int
    heads: int
    mlp_width: int
    positions: int
    mixer: Literal["mamba1", "mamba2"]
    expand: int
    state: int
    groups: int
    head_size: int
    conv: int
    dropout: float

    def __post_init__(self) -> None:
        sizes = (
            "inputs",
            "outputs",
            "length",
            "width",
            "heads",
            "mlp_width",
            "expand",
            "state",
            "groups",
            "head_size",
        )
        problems = [
            f"{n} is {getattr(self, n)}; write a number of at least 1" for n in sizes if getattr(self, n) < 1
        ]
        problems += [] if self.conv in (2, 3, 4) else [f"conv is {self.conv}; write 2, 3 or 4 taps"]
        if not problems and self.width % self.heads:
            problems.append(f"heads is {self.heads}, of which width, {self.width}, is no multiple")
        if not problems and self.mixer == "mamba2" and "M" in self.pattern:
            inner = self.expand * self.width
            if inner % self.head_size:
                problems.append(
                    f"head_size is {self.head_size}, of which expand * width, {inner}, is no multiple"
                )
            elif inner // self.head_size % self.groups:
                heads = inner // self.head_size
                problems.append(f"groups is {self.groups}, of which mamba2's {heads} heads are no multiple")
        refuse_all(problems)

    def written(self) -> dict[str, Any]:
        return asdict(self)


class Attention(nn.Module):
    """Causal softmax attention with biases."""

    def __init__(self, shape: SequenceShape) -> None:
        super().__init__()
        self.heads = shape.heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_module(name, nn.Linear(shape.width, shape.width))

    def forward(self, x: Tensor) -> Mixed:
        q, k, v = (
            self.get_submodule(f"{name}_proj")(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in "qkv"
        )
        mixed = attend(q, k, v, None, causal=True).transpose(1, 2).flatten(2)
        return Mixed(self.get_submodule("o_proj")(mixed))


class Mlp(nn.Module):
    """GELU, by its tanh, as in GPT-2."""

    def __init__(self, shape: SequenceShape) -> None:
        super().__init__()
        self.up_proj, self.down_proj = (
            nn.Linear(shape.width, shape.mlp_width),
            nn.Linear(shape.mlp_width, shape.width),
        )

    def forward(self, x: Tensor) -> Mixed:
        return Mixed(self.down_proj(F.gelu(self.up_proj(x), approximate="tanh")))


class Mamba2(HybridMixer):
    """As Mamba-2's own code draws it, or `after_attention` as hybrid_lm's begins: there C reads 0 of the
    numbers of a state beyond a head's channels, which attention has no queries for, so that they have a
    gradient (of C, by the keys that are drawn) and no effect yet."""

    def __init__(self, shape: SequenceShape, after_attention: bool) -> None:
        config = SimpleNamespace(
            hidden_size=shape.width,
            num_attention_heads=shape.heads,
            mamba_n_heads=shape.expand * shape.width // shape.head_size,
            mamba_d_head=shape.head_size,
            mamba_n_groups=shape.groups,
            mamba_d_state=shape.state,
            mamba_d_conv=shape.conv,
            rms_norm_eps=EPS,
            mamba_proj_bias=False,
            mamba_conv_bias=True,
        )
        super().__init__(config, half_life=8.0, tap=0.1)
        if not after_attention:
            self.drawn_()
        elif self.states > self.head_dim:
            with torch.no_grad():
                self.rows("C").unflatten(0, (self.groups, self.states))[:, self.head_dim :].zero_()

    def forward(self, x: Tensor, context: Context = NO_CONTEXT, by_head: bool = False) -> Mixed:
        return super().forward(x, context, by_head)


def made_of(letter: str, shape: SequenceShape, after_attention: bool) -> nn.Module:
    if letter == "A":
        return Attention(shape)
    if letter == "F":
        return Mlp(shape)
    if letter == "S":
        return S4DMixer(
            shape.width, expand=shape.expand, d_state=shape.state, d_conv=shape.conv, dropout=shape.dropout
        )
    if shape.mixer == "mamba2":
        return Mamba2(shape, after_attention)
    return SelectiveMixer(shape.width, expand=shape.expand, d_state=shape.state, d_conv=shape.conv)


class SequenceLayer(nn.Module):
    """x + mixer(norm(x))"""

    def __init__(self, letter: str, shape: SequenceShape, after_attention: bool = False) -> None:
        super().__init__()
        self.letter = letter
        self.norm = nn.LayerNorm(shape.width, eps=EPS)
        self.mixer = made_of(letter, shape, after_attention)

    def forward(self, x: Tensor, want: Want = PLAIN) -> tuple[Tensor, Mixed]:
        """The stream (B, L, D) behind the layer, or what its mixer alone adds, and the mixer's record."""
        mixed = self.mixer(self.norm(x))
        return (mixed.output if want.alone else x + mixed.output), mixed

    @torch.no_grad()
    def begin_(self, layers: int) -> None:
        """GPT-2's: matrices of deviation 0.02, what writes to the stream over the root of the number of
        layers; Mamba's own, but for its output projection, which is scaled alike."""
        root = layers**-0.5
        if self.letter in "AF":
            for linear in self.mixer.children():
                assert isinstance(linear, nn.Linear), "attention and MLPs are of linears alone"
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
            last: Any = self.mixer.get_submodule("o_proj" if self.letter == "A" else "down_proj")
            last.weight.mul_(root)
        else:
            output: Any = self.mixer.get_submodule("out_proj")
            output.weight.mul_(root)
