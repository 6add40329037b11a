"""Additional-scan: more states a channel. MambaPEFT (https://arxiv.org/abs/2411.03855), section 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...config.registry import METHODS
from ...errors import UserError, refuse_all
from .method import Edit, Method, Mixer, Start, Tensors


@METHODS.register("additional_scan")
@dataclass(frozen=True, kw_only=True)
class AdditionalScan(Method):
    """states more for every channel, before those of their group: a mixer with N + states, which its own code
    runs and its weights can hold. Merged, it is an ordinary model with a larger state size.

    New rows of B are a linear layer's random numbers and those of C are 0, so that nothing changes at first
    and C has a gradient: as in State-offset Tuning's code; MambaPEFT's draws both. In Mamba the new decay
    rates are the first state's, from which they are trained away. In Mamba-2 a head has one decay for all its
    states; but B and C pass through the convolution, which gets channels for them.
    """

    states: int = 6
    merges: ClassVar[bool] = True
    late: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_all(
            [f"states is {self.states}; write a whole number of at least 1"] if self.states < 1 else []
        )

    def tensors(self, mixer: Mixer) -> dict[str, Start]:
        if mixer.counts_states is None:
            raise UserError(f"method {self.name!r}: {mixer.kind} cannot have more states; leave it out")
        rows, starts = self.states * mixer.groups, {}
        for suffix in mixer.directions:
            columns = mixer.matrix(mixer.place("b", suffix))[1]
            starts[f"{self.name}{suffix}_b"] = Start((rows, columns), "kaiming")
            starts[f"{self.name}{suffix}_c"] = Start((rows, columns))
            if mixer.heads is None:
                starts[f"{self.name}{suffix}_a"] = Start((mixer.inner, self.states))
        if mixer.heads is not None:
            starts[f"{self.name}_conv"] = Start((2 * rows, mixer.taps), "kaiming")
            if "conv1d.bias" in mixer.shapes:
                starts[f"{self.name}_conv_bias"] = Start((2 * rows,))
        return starts

    def decay_of(self, tensor: str) -> float:
        """None for the decay rates."""
        return 0.0 if tensor.endswith("_a") else self.decay

    def edit(self, edit: Edit, tensors: Tensors) -> None:
        mixer, counts = edit.mixer, edit.mixer.counts_states
        assert counts is not None, "asked by tensors"
        states = edit.attribute(counts)
        for suffix in mixer.directions:
            place = mixer.place("b", suffix)
            new = tensors[f"{self.name}{suffix}_b"], tensors[f"{self.name}{suffix}_c"]
            self._insert(edit, place.path, place.start, states, *new)
            bias = place.path.replace("weight", "bias")
            if bias in mixer.shapes:
                self._insert(edit, bias, place.start, states, *(part.new_zeros(len(part)) for part in new))
            if mixer.heads is None:
                rates = mixer.place("a", suffix).path
                first = edit.module.get_parameter(rates)[:, :1]
                more = first + tensors[f"{self.name}{suffix}_a"].to(first.dtype)
                edit.weights[rates] = torch.cat([more, edit.weight(rates)], dim=1)
        if mixer.heads is not None:
            taps = tensors[f"{self.name}_conv"].unsqueeze(1).chunk(2)
            self._insert(edit, "conv1d.weight", mixer.inner, states, *taps)
            if "conv1d.bias" in mixer.shapes:
                biases = tensors[f"{self.name}_conv_bias"].chunk(2)
                self._insert(edit, "conv1d.bias", mixer.inner, states, *biases)
        edit.attributes[counts] = states + self.states

    def _insert(self, edit: Edit, path: str, start: int, states: int, b: Tensor, c: Tensor) -> None:
        """Rows for new states of B, whose rows begin at `start`, and of C, which follows, in every group."""
        whole, groups = edit.weight(path), edit.mixer.groups
        count = groups * states
        parts = [whole[:start]]
        for new, at in ((b, start), (c, start + count)):
            old = whole[at : at + count].unflatten(0, (groups, states))
            more = new.to(whole.dtype).unflatten(0, (groups, self.states))
            parts.append(torch.cat([more, old], dim=1).flatten(0, 1))
        edit.weights[path] = torch.cat([*parts, whole[start + 2 * count :]])
        edit.attributes |= sizes_of(edit.module, path, len(edit.weights[path]))


def sizes_of(module: nn.Module, path: str, rows: int) -> dict[str, int]:
    """What the module that owns a parameter says of its rows, by dotted name, for those who ask it."""
    owner = path.rpartition(".")[0]
    kind = module.get_submodule(owner)
    if isinstance(kind, nn.Linear):
        return {f"{owner}.out_features": rows}
    sizes = {f"{owner}.{name}": rows for name in ("in_channels", "out_channels", "groups")}
    return sizes | ({"conv_dim": rows} if hasattr(module, "conv_dim") else {})
