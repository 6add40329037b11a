"""Prompt-tuning: soft tokens at the model's input, and deltas on what stands there: MambaPEFT
(https://arxiv.org/abs/2411.03855), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.registry import METHODS
from ...errors import UserError, refuse_all
from ...layers.insertion import Where
from .method import Method, Mixer, Start, Tensors
from .partial import Partial


@METHODS.register("prompt")
@dataclass(frozen=True, kw_only=True)
class Prompt(Method):
    """tokens of the stream's width, from N(0, 1), among those that are embedded, and left out behind the last
    layer.

    where: prefix, suffix, infix (evenly spread) or both (half in front, half behind), the default for
        pictures; before a text there is a prefix alone, behind its padding
    mlp:   make them by Linear, Tanh, Linear of the stream's width, which trains otherwise and makes the same
        tokens for every input: `bake` leaves the tokens alone
    """

    tokens: int = 8
    where: Where | None = None
    mlp: bool = False

    on: ClassVar[str] = "embedding"
    begins: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_all(
            [f"tokens is {self.tokens}; write a whole number of at least 1"] if self.tokens < 1 else []
        )

    def tensors(self, mixer: Mixer) -> dict[str, Start]:
        if not mixer.opens:
            raise UserError(f"method {self.name!r}: this model takes no tokens beside its own; leave it out")
        if mixer.table and self.where not in (None, "prefix"):
            raise UserError(f"method {self.name!r}: a text is read forwards; where: prefix, not {self.where}")
        width = mixer.width
        starts = {self.name: Start((self.tokens, width), "normal")}
        if self.mlp:
            for layer in ("in", "out"):
                starts[f"{self.name}_{layer}"] = Start((width, width), "kaiming")
                starts[f"{self.name}_{layer}_bias"] = Start((width,))
        return starts

    def place(self, mixer: Mixer) -> Where:
        return self.where or ("prefix" if mixer.table else "both")

    @property
    def baked(self) -> Prompt:
        """With the tokens alone."""
        return replace(self, mlp=False)

    def made(self, tensors: Tensors) -> Tensor:
        """The tokens (P, d)."""
        tokens = tensors[self.name]
        if not self.mlp:
            return tokens
        hidden = torch.tanh(F.linear(tokens, tensors["prompt_in"], tensors["prompt_in_bias"]))
        return F.linear(hidden, tensors["prompt_out"], tensors["prompt_out_bias"])


@dataclass(frozen=True, kw_only=True)
class AtInput(Partial):
    """A delta on a parameter that stands beside the embedding of pictures."""

    on: ClassVar[str] = "embedding"
    begins: ClassVar[bool] = True


@METHODS.register("cls_token")
@dataclass(frozen=True, kw_only=True)
class ClsToken(AtInput):
    """On the class token; of pictures alone."""

    what: ClassVar[str] = "cls_token"
    words: ClassVar[str] = "class token"


@METHODS.register("pos_embed")
@dataclass(frozen=True, kw_only=True)
class PosEmbed(AtInput):
    """On the table of positions; of pictures alone."""

    what: ClassVar[str] = "pos_embed"
    words: ClassVar[str] = "table of positions"
