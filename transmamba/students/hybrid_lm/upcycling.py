"""Which of a teacher's MLPs each expert takes.

Sparse upcycling (arXiv 2212.05055): every expert is a copy. Drop-Upcycling (arXiv 2502.19261): a share of
each copy's neurons is drawn anew, from the statistics of the MLP's own matrices. Neither text was read
first-hand; that a neuron's gate, up and down are drawn together, and other ones in each expert, is ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...data.hashing import hash64
from ...subcloning.plan import Take
from ...views.sublayers import Mlp

Index = Tensor | None
# what draws the neurons, of the layer and the expert alone: the same in every process, and on another call
_SEED = 3


def plan_experts(
    into: str, source: str, mlp: Mlp, rows: Index, keep: Index, k: int, count: int, redrawn: float
) -> Iterator[Take]:
    """Of each of `count` experts its part of `gate_up_proj` (E, 2 F, D) and of `down_proj` (E, D, F).

    rows, keep: the neurons and channels of a narrower student
    redrawn:    share of the neurons that are drawn anew
    """
    assert mlp.gate is not None, "looked at with the shape"
    parts = {"gate": mlp.gate.weight, "up": mlp.up.weight, "down": mlp.down.weight}
    neurons = torch.arange(len(parts["up"])) if rows is None else rows
    places = {"gate": slice(len(neurons)), "up": slice(len(neurons), 2 * len(neurons)), "down": slice(None)}
    for e in range(count):
        drawn, generator = _redrawn(neurons, redrawn, k, e)
        for name, weight in parts.items():
            out = name == "down"
            tensor = _with_new(weight, drawn, 1 if out else 0, generator)
            index = (keep, rows) if out else (rows, keep)
            yield Take(
                target=f"{into}.experts.{'down_proj' if out else 'gate_up_proj'}",
                source=f"{source}.{name}.weight",
                tensor=tensor,
                index=index,
                into=(e, places[name]),
                made="sliced" if len(drawn) else "copied",
                scale=_scale(weight, index[1]),
                layer=k,
            )


def _scale(weight: Tensor, columns: Index) -> float:
    """Of a matrix that reads fewer inputs, as everywhere."""
    return 1.0 if columns is None else float((weight.shape[1] / len(columns)) ** 0.5)


def _redrawn(neurons: Tensor, share: float, layer: int, expert: int) -> tuple[Tensor, torch.Generator]:
    """Which of the teacher's neurons an expert draws anew, and what draws them."""
    generator = torch.Generator().manual_seed(int(hash64(_SEED, layer, expert)[0] >> 1))
    order = torch.randperm(len(neurons), generator=generator)
    return neurons.cpu()[order[: round(share * len(neurons))]], generator


def _with_new(weight: Tensor, neurons: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """The matrix, with these of its rows (axis 0) or columns (1) from normals of its own mean and
    deviation."""
    if not len(neurons):
        return weight
    like = weight.detach().float()
    shape = [*weight.shape]
    shape[axis] = len(neurons)
    new = torch.randn(shape, generator=generator).to(like.device) * like.std() + like.mean()
    return like.index_copy(axis, neurons.to(like.device), new).to(weight.dtype)
