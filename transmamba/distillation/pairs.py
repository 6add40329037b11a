"""Which student layer is compared with which sublayer of the teacher."""

from __future__ import annotations

from collections.abc import Sequence


def feature_pairs(num_layers: int, ends: Sequence[int]) -> dict[int, int]:
    """Student layer -> teacher sublayer after which residual streams are compared: `ends` are those that end
    a block; block t with layer floor((t + 1) Ls / Lt) - 1 [proposal D4 of the method notes]; for Vim with 2
    layers a block, 2 t + 1.

    Where several blocks share a layer, the first has it: it is as deep in the teacher as the layer is in the
    student."""
    pairs: dict[int, int] = {}
    for t, end in enumerate(ends):
        pairs.setdefault((t + 1) * num_layers // len(ends) - 1, end)
    return {k: end for k, end in pairs.items() if k >= 0}
