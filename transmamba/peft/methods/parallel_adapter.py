"""A branch beside the output projection, as AdaptFormer's (https://arxiv.org/abs/2205.13535): MambaPEFT."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ...config.registry import METHODS
from ...errors import refuse_all
from .method import Inside, Method, Mixer, Start, Tensors


@METHODS.register("parallel_adapter")
@dataclass(frozen=True, kw_only=True)
class ParallelAdapter(Method):
    """scale up relu(down(y)) is added to out_proj(y); down from D to r, up from r to d, from 0, no biases.

    r: the bottleneck's width
    """

    r: int = 32
    scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_all([f"r is {self.r}; write a whole number of at least 1"] if self.r < 1 else [])

    def tensors(self, mixer: Mixer) -> dict[str, Start]:
        down = Start((self.r, mixer.inner), "kaiming")
        return {f"{self.name}_down": down, f"{self.name}_up": Start((mixer.width, self.r))}

    def enter(self, inside: Inside, mixer: Mixer, tensors: Tensors) -> None:
        up, down = tensors[f"{self.name}_up"], tensors[f"{self.name}_down"]

        def branch(gated: Tensor) -> Tensor:
            narrow = F.relu(F.linear(gated, down.to(gated.dtype)))
            return F.linear(narrow, (up * self.scale).to(gated.dtype))

        inside.beside.append(branch)
