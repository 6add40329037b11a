"""Initial-state Tuning: the state in front of the first token is learnt, as in
https://arxiv.org/abs/2503.03499, of which prefixes are a special case.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...config.registry import METHODS
from .method import Inside, Method, Mixer, Start, Tensors


@METHODS.register("initial_state")
@dataclass(frozen=True, kw_only=True)
class InitialState(Method):
    """h0 (D, N) of a layer and direction, from 0. Padding before a text does not decay it, and every text of
    a packed row begins with it."""

    def tensors(self, mixer: Mixer) -> dict[str, Start]:
        places = self.places(mixer, "a", "state")
        return {f"{self.name}{place.suffix}": Start((mixer.inner, mixer.state)) for place in places}

    def enter(self, inside: Inside, mixer: Mixer, tensors: Tensors) -> None:
        for place in mixer.places["a"]:
            inside.add("begins", place.suffix, tensors[f"{self.name}{place.suffix}"])
