"""Partial tuning: a delta that starts at 0 on a parameter that is there, so that weight decay pulls towards
the pretrained value: MambaPEFT (https://arxiv.org/abs/2411.03855), section 3; BitFit, arXiv:2106.10199.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...config.registry import METHODS
from .method import Additive, Mixer, Place, Start, Tensors


@dataclass(frozen=True, kw_only=True)
class Partial(Additive):
    """A delta of the parameter's own shape."""

    decay: float = 10.0

    def key(self, place: Place) -> str:
        return f"{self.name}{place.suffix}"

    def tensors(self, mixer: Mixer) -> dict[str, Start]:
        places = self.places(mixer, self.what, self.words)
        return {self.key(place): Start(mixer.shape(place)) for place in places}

    def delta(self, place: Place, mixer: Mixer, tensors: Tensors) -> Tensor:
        return tensors[self.key(place)]


@METHODS.register("a")
@dataclass(frozen=True, kw_only=True)
class A(Partial):
    """On A_log, the logarithm of the decay rates."""

    what: ClassVar[str] = "a"
    words: ClassVar[str] = "decay rates"


@METHODS.register("d")
@dataclass(frozen=True, kw_only=True)
class D(Partial):
    """On D, the skip around the scan."""

    what: ClassVar[str] = "skip"
    words: ClassVar[str] = "skip D around its scan"


@METHODS.register("bias")
@dataclass(frozen=True, kw_only=True)
class Bias(Partial):
    """On the bias of delta alone."""

    decay: float = 100.0
    what: ClassVar[str] = "dt_bias"
    words: ClassVar[str] = "bias of delta"


@METHODS.register("conv1d")
@dataclass(frozen=True, kw_only=True)
class Conv1d(Partial):
    """On the convolution's taps."""

    what: ClassVar[str] = "conv"
    words: ClassVar[str] = "convolution"


@METHODS.register("bitfit")
@dataclass(frozen=True, kw_only=True)
class BitFit(Partial):
    """On the biases of the convolution and of delta."""

    decay: float = 1.0
    what: ClassVar[str] = "biases"
    words: ClassVar[str] = "biases"

    def key(self, place: Place) -> str:
        return f"{self.name}_{'conv' if 'conv' in place.path else 'dt'}{place.suffix}"
