"""Affix-tuning: tokens of each layer's own. MambaPEFT (https://arxiv.org/abs/2411.03855), section 3."""

from __future__ import annotations

from dataclasses import dataclass

from ...config.registry import METHODS
from ...errors import UserError, refuse_all
from ...layers.insertion import Where
from .method import Inside, Method, Mixer, Start, Tensors


@METHODS.register("affix")
@dataclass(frozen=True, kw_only=True)
class Affix(Method):
    """tokens of the width that the input projection makes (of Mamba 2 D: x and gate), from N(0, 1), put among
    those that it has made, before the convolution; what the scan gives at them is dropped, so that their
    gates say nothing.

    where: prefix, suffix, infix (evenly spread) or both (half in front, half behind); mixers that read
        forwards alone take a prefix, which is their default; of others, two sets have a prefix each, one both
    dual:  a mixer whose directions are apart has a set of tokens for each, in the order in which it reads
    """

    tokens: int = 3
    where: Where | None = None
    dual: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_all(
            [f"tokens is {self.tokens}; write a whole number of at least 1"] if self.tokens < 1 else []
        )

    def tensors(self, mixer: Mixer) -> dict[str, Start]:
        if mixer.causal and self.where not in (None, "prefix"):
            raise UserError(
                f"method {self.name!r}: {mixer.kind} reads forwards; where: prefix, not {self.where}"
            )
        shape = self.tokens, mixer.projected
        return {f"{self.name}{suffix}": Start(shape, "normal") for suffix in self._sets(mixer)}

    def _sets(self, mixer: Mixer) -> tuple[str, ...]:
        return mixer.directions if self.dual else ("",)

    def enter(self, inside: Inside, mixer: Mixer, tensors: Tensors) -> None:
        alone = not mixer.causal and len(self._sets(mixer)) == 1
        where = self.where or ("both" if alone else "prefix")
        for suffix in self._sets(mixer):
            inside.affix(where, suffix, tensors[f"{self.name}{suffix}"])
