"""Where queries find their own items in a gallery: exact ranks, with ties, without the whole matrix of
similarities in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TOP = 10
# cosines are told apart to 6e-8, float32's step below 1: what differs by the order of adding alone is equal
STEPS = 2.0**24
# similarities at a time: memory (some 8 arrays of 8 bytes each), not the result
_BLOCK = 2**22


@dataclass(frozen=True)
class Ranks:
    """Of (Q,) queries, each of which looks for the first of its own items in a gallery of G.

    above: how many items of others are more alike than the most alike of its own
    tied:  how many items of others are as alike as that one
    own:   how many of its own are, that one included
    top:   (Q, min(10, G)) the most alike items, by their place in the gallery; of equals the first

    `tied` items come in an order that means nothing, so that `expected` and `found` are expectations over all
    of them: a model that embeds everything alike is as good as chance, in whatever order the data are.
    above, tied and own are nan where an embedding is not finite.
    """

    above: Floats
    tied: Floats
    own: Floats
    top: Ints

    def expected(self) -> Floats:
        """The rank of the first of a query's own items, from 1: `own` items among `own + tied` in a random
        order have (tied / (own + 1)) others before their first."""
        return 1 + self.above + self.tied / (self.own + 1)

    def found(self, k: int) -> Floats:
        """How likely one of a query's own items is among the first k: 1 or 0 where nothing is tied."""
        missed = np.ones_like(self.above)
        for drawn in range(k):  # one place after the other goes to another's item
            others, left = self.tied - drawn, self.tied + self.own - drawn
            share = np.maximum(others, 0) / np.maximum(left, 1)
            missed = np.where(drawn < k - self.above, missed * share, missed)
        return np.where(np.isfinite(self.above), 1 - missed, np.nan)


def search(
    queries: npt.NDArray[np.float32], owners: Ints, gallery: npt.NDArray[np.float32], groups: Ints
) -> Ranks:
    """Exhaustive search by cosine.

    queries: (Q, E) of length 1; owners (Q,) the groups of their own items, each of which has one at least
    gallery: (G, E) of length 1; groups (G,)
    """
    if not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        nothing = np.full(len(queries), np.nan)  # a rank depends on the whole gallery
        top = np.zeros((len(queries), min(TOP, len(gallery))), dtype=np.int64)
        return Ranks(nothing, nothing, nothing, top)
    # in float64, whose order of adding is far below a step
    items, theirs = torch.from_numpy(gallery).double().T, torch.from_numpy(groups)
    rows = max(1, _BLOCK // len(gallery))
    # made before the blocks: small pieces kept in between would leave holes that no later block fits in
    counts = torch.empty(3, len(queries), dtype=torch.float64)
    first = torch.empty(len(queries), min(TOP, len(gallery)), dtype=torch.int64)
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        cosines = torch.from_numpy(queries[part]).double() @ items
        found, first[part] = _block(cosines, torch.from_numpy(owners[part]), theirs)
        counts[:, part] = found
    above, tied, own = counts.numpy()
    return Ranks(above, tied, own, first.numpy())


def _block(cosines: Tensor, owners: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """(above, tied, own) (3, n) of some queries, and `top` (n, min(10, G)): cosines (n, G) in float64."""
    steps = cosines.mul_(STEPS).round_()
    mine = owners[:, None] == groups
    best = steps.masked_fill(~mine, -torch.inf).amax(dim=1, keepdim=True)
    assert torch.isfinite(best).all(), "a query without an item of its own"
    equal, above = steps == best, (steps > best).sum(dim=1)
    own = (equal & mine).sum(dim=1)
    # whole numbers below 2^53, in which the place decides between equals
    count = steps.shape[1]
    order = steps.mul_(count).sub_(torch.arange(count, dtype=steps.dtype))
    top = order.topk(min(TOP, count), dim=1).indices
    return torch.stack((above, equal.sum(dim=1) - own, own)), top


def overlap(a: Ranks, b: Ranks) -> float:
    """The share of the first ten items that both have, 0..1, a mean over queries; nan where one is."""
    if not (np.isfinite(a.above).all() and np.isfinite(b.above).all()):
        return float("nan")
    shared = sum((a.top == np.roll(b.top, by, axis=1)).sum() for by in range(b.top.shape[1]))
    return float(shared / b.top.size)
