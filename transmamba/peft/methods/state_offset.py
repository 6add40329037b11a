"""State-offset Tuning (https://arxiv.org/abs/2503.03499): at every step something is added to what is read
out of the state, which itself stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...config.registry import METHODS
from ...errors import UserError, refuse_all
from .method import Inside, Method, Mixer, Start, Tensors


@METHODS.register("state_offset_h")
@dataclass(frozen=True, kw_only=True)
class StateOffsetH(Method):
    """y_t + C_t . h', with h' (D, N) a layer and direction, from 0.

    r:     with it h' is up (D / ratio, r) times down (r, N ratio), in another shape; None: h' itself
    ratio: makes that product less oblong, for N is small
    """

    r: int | None = None
    ratio: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [("ratio", self.ratio), *([] if self.r is None else [("r", self.r)])]
        refuse_all([f"{key} is {n}; write a whole number of at least 1" for key, n in given if n < 1])
        refuse_all(["ratio is there without r; write r too"] if self.r is None and self.ratio != 1 else [])

    def tensors(self, mixer: Mixer) -> dict[str, Start]:
        if mixer.inner % self.ratio:
            wanted = f"write a divisor of the mixer's {mixer.inner} channels"
            raise UserError(f"method {self.name!r}: ratio is {self.ratio}; {wanted}")
        starts = {}
        for suffix in mixer.directions:
            if self.r is None:
                starts[f"{self.name}{suffix}"] = Start((mixer.inner, mixer.state))
                continue
            starts[f"{self.name}{suffix}_up"] = Start((mixer.inner // self.ratio, self.r))
            starts[f"{self.name}{suffix}_down"] = Start((self.r, mixer.state * self.ratio), "kaiming")
        return starts

    def offset(self, mixer: Mixer, suffix: str, tensors: Tensors) -> Tensor:
        """h' (D, N) of a direction."""
        if self.r is None:
            return tensors[f"{self.name}{suffix}"]
        made = tensors[f"{self.name}{suffix}_up"] @ tensors[f"{self.name}{suffix}_down"]
        return made.view(mixer.inner, mixer.state)

    def enter(self, inside: Inside, mixer: Mixer, tensors: Tensors) -> None:
        for suffix in mixer.directions:
            inside.add("offsets", suffix, self.offset(mixer, suffix, tensors))


@METHODS.register("state_offset_y")
@dataclass(frozen=True, kw_only=True)
class StateOffsetY(Method):
    """y_t + y', with y' (D,) a layer, from 0. Two directions are averaged behind their scans: one says it."""

    def tensors(self, mixer: Mixer) -> dict[str, Start]:
        return {self.name: Start((mixer.inner,))}

    def enter(self, inside: Inside, mixer: Mixer, tensors: Tensors) -> None:
        inside.add("shifts", "", tensors[self.name])
