"""LoRA (https://arxiv.org/abs/2106.09685) on a mixer's projections, and partial LoRA on rows of them: of
MambaPEFT (https://arxiv.org/abs/2411.03855), section 3. W + scale up down, in the weights: no dropout.

In Mamba-2 x, z, B, C and delta are rows of in_proj; `lora_x_proj` there takes those of B, C and delta, and
`lora_dt` those of delta, as `lora_d` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...config.registry import METHODS
from ...errors import refuse_all
from .method import Additive, Edit, Inside, Mixer, Place, Start, Tensors


@dataclass(frozen=True, kw_only=True)
class LowRank(Additive):
    """r: the rank. scale: what the product is multiplied by, fixed: no alpha / r."""

    r: int = 64
    scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_all([f"r is {self.r}; write a whole number of at least 1"] if self.r < 1 else [])

    def tensors(self, mixer: Mixer) -> dict[str, Start]:
        starts = {}
        for place in self.places(mixer, self.what, self.words):
            rows, columns = mixer.matrix(place)
            starts[f"{self.name}{place.suffix}_down"] = Start((self.r, columns), "kaiming")
            starts[f"{self.name}{place.suffix}_up"] = Start((rows, self.r))
        return starts

    def factors(self, place: Place, tensors: Tensors) -> tuple[Tensor, Tensor]:
        """up (rows, r) and down (r, columns)."""
        return tensors[f"{self.name}{place.suffix}_up"], tensors[f"{self.name}{place.suffix}_down"]

    def delta(self, place: Place, mixer: Mixer, tensors: Tensors) -> Tensor:
        up, down = self.factors(place, tensors)
        return ((up * self.scale) @ down).view(mixer.shape(place))


@METHODS.register("lora_in")
@dataclass(frozen=True, kw_only=True)
class LoraIn(LowRank):
    """On in_proj, whole."""

    r: int = 32
    what: ClassVar[str] = "in"
    words: ClassVar[str] = "input projection"


@METHODS.register("lora_x")
@dataclass(frozen=True, kw_only=True)
class LoraX(LowRank):
    """On in_proj's rows of x: best with little data."""

    what: ClassVar[str] = "x"
    words: ClassVar[str] = "rows of x"


@METHODS.register("lora_z")
@dataclass(frozen=True, kw_only=True)
class LoraZ(LowRank):
    """On in_proj's rows of the gate z."""

    what: ClassVar[str] = "z"
    words: ClassVar[str] = "rows of a gate"


@METHODS.register("lora_out")
@dataclass(frozen=True, kw_only=True)
class LoraOut(LowRank):
    """On out_proj."""

    r: int = 96
    what: ClassVar[str] = "out"
    words: ClassVar[str] = "output projection"


@METHODS.register("lora_x_proj")
@dataclass(frozen=True, kw_only=True)
class LoraXProj(LowRank):
    """On x_proj, which makes delta, B and C."""

    what: ClassVar[str] = "x_proj"
    words: ClassVar[str] = "projection of delta, B and C"


@METHODS.register("lora_dt")
@dataclass(frozen=True, kw_only=True)
class LoraDt(LowRank):
    """On dt_proj."""

    what: ClassVar[str] = "dt_proj"
    words: ClassVar[str] = "projection of delta"


@METHODS.register("lora_d")
@dataclass(frozen=True, kw_only=True)
class LoraD(LowRank):
    """On x_proj's rows of delta."""

    what: ClassVar[str] = "d"
    words: ClassVar[str] = "rows of delta"


@METHODS.register("lora_b")
@dataclass(frozen=True, kw_only=True)
class LoraB(LowRank):
    """On x_proj's rows of B."""

    what: ClassVar[str] = "b"
    words: ClassVar[str] = "rows of B"


@METHODS.register("lora_c")
@dataclass(frozen=True, kw_only=True)
class LoraC(LowRank):
    """On x_proj's rows of C."""

    what: ClassVar[str] = "c"
    words: ClassVar[str] = "rows of C"


@METHODS.register("lora_embed")
@dataclass(frozen=True, kw_only=True)
class LoraEmbed(LowRank):
    """On the embedding of tokens, or of patches. A head that is tied to it is left as it is."""

    r: int = 32
    scale: float = 1.0
    on: ClassVar[str] = "embedding"
    what: ClassVar[str] = "embedding"
    words: ClassVar[str] = "embedding"

    def edit(self, edit: Edit, tensors: Tensors) -> None:
        # a table of words is larger than all that is looked up in it: only what is looked up is computed
        if edit.merging or not edit.mixer.table:
            super().edit(edit, tensors)

    def enter(self, inside: Inside, mixer: Mixer, tensors: Tensors) -> None:
        if mixer.table:
            up, down = self.factors(mixer.places["embedding"][0], tensors)
            inside.looked_up.append((up, down * self.scale))
