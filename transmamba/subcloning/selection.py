"""Which coordinates of a teacher a narrower student keeps, and the scores that say so.

Criteria: mean activation (Samragh et al., arXiv 2312.09299); evenly spaced, without data (Xu et al.
"Initializing models with larger ones", ICLR 2024); "weights that change little between pretraining and
fine-tuning" (TransMamba, arXiv 2502.15130, as reported by third parties).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.batch import Batch
from ..errors import UserError
from ..views.sublayers import read_and_write
from ..views.view import View

if TYPE_CHECKING:
    from ..teachers.teacher import Teacher


class Selection:
    """Which coordinates of a teacher's tower a student's tower of width `width` keeps.

    `scores` maps `stream` (D,) and `inner.{s}`, the channels that sublayer s writes from (attention's values,
    an MLP's neurons), to importance; a missing name means the uniform choice. `paired`: values go to two
    inner channels each, see `SubcloneConfig.average`.
    """

    def __init__(
        self,
        full_width: int,
        width: int,
        scores: Mapping[str, Tensor] | None = None,
        paired: bool = False,
    ) -> None:
        self._scores = scores or {}
        self.paired = paired
        self.residual = self._choose("stream", full_width, width)

    def inner(self, s: int, full: int, count: int) -> Tensor:
        """`count` of the `full` channels that sublayer s writes from."""
        return self._choose(f"inner.{s}", full, count)

    def heads(self, s: int, groups: int, shared: int, count: int, each: int) -> Tensor:
        """Heads of attention s, (count, each): `count` of its `groups` of heads that share k and v, `each` of
        the `shared` heads in them. A group matters as much as those of its heads that stay."""
        score = self._scores.get(f"inner.{s}")
        if score is None:
            chosen = torch.arange(count) * groups // count
            within = (torch.arange(each) * shared // each).expand(count, each)
        else:
            by_head = score.unflatten(0, (groups, shared, -1)).sum(dim=-1)
            best = by_head.topk(each, dim=1)
            chosen = best.values.sum(dim=1).topk(count).indices.sort().values
            within = best.indices[chosen].sort(dim=1).values
        return chosen[:, None] * shared + within

    def _choose(self, name: str, full: int, count: int) -> Tensor:
        """`count` positions: whole cycles of all of them first, then the most important ones in their
        order."""
        cycles, rest = divmod(count, full)
        whole = torch.arange(full).repeat(cycles)
        if not rest:
            return whole
        score = self._scores.get(name)
        if score is None:
            picked = torch.arange(rest) * full // rest
        else:
            picked = score.topk(rest).indices.sort().values
        return torch.cat([whole, picked.to(whole.device)])


def multiplicity(index: Tensor, full: int) -> Tensor:
    """1 / how often each chosen position is chosen: the factor that keeps a sum over repeats unchanged."""
    return 1.0 / torch.bincount(index, minlength=full)[index].float()


Scores = dict[str, dict[str, Tensor]]  # by tower, then as `Selection` takes them


@torch.no_grad()
def activation_scores(teacher: Teacher, batches: Iterable[Batch]) -> Scores:
    """Mean |activation| of every residual coordinate (over all blocks) and of what each sublayer writes from.

    Raises UserError when there are no batches.
    """
    found: dict[tuple[str, str], dict[tuple[int, int], Tensor]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    ends = {name: set(tower.ends) for name, tower in teacher.view.towers.items()}

    def observe(b: int, tower: str, s: int, name: str, tensor: Tensor) -> None:
        if name == "stream" and s in ends[tower]:
            key = "stream"
        elif name in ("values", "neurons"):
            key = f"inner.{s}"
        else:
            return
        flat = tensor.float().abs().flatten(0, -2)
        found.setdefault((tower, key), {})[b, s] = flat.sum(dim=0)
        counts[tower, key] += len(flat)

    for _ in teacher.walk([batch.inputs for batch in batches], observe):
        pass
    if not found:
        raise UserError("subcloning by activation needs calibration images; set init.importance to 'uniform'")
    scores: Scores = {}
    for (tower, key), sums in found.items():
        # batch by batch, whatever was run first: sums are rounded
        total = sum((sums[place] for place in sorted(sums)), torch.zeros(()))
        scores.setdefault(tower, {})[key] = (total / counts[tower, key]).cpu()
    return scores


@torch.no_grad()
def change_scores(view: View, base: View) -> Scores:
    """Minus the summed |fine-tuned - base| of every weight that touches a coordinate: what moved least
    matters most (the criterion reported of arXiv 2502.15130). Raises UserError when the two teachers differ
    in shape."""
    scores: Scores = {}
    for name, tower in view.towers.items():
        old = base.towers.get(name)
        if old is None or tower.width != old.width or tower.kinds != old.kinds:
            raise UserError(
                "init.base has another width or depth than the teacher; give its own pretrained version"
            )
        stream, found = torch.zeros(tower.width), {}
        for s, (now, before) in enumerate(zip(tower.sublayers, old.sublayers, strict=True)):
            reads, writes = (
                (new.weight - was.weight).abs().cpu()
                for new, was in zip(read_and_write(now), read_and_write(before), strict=True)
            )
            stream += reads.sum(0) + writes.sum(1)
            # heads of v may be fewer, each shared by several of o
            shared = writes.shape[1] // reads.shape[0]
            by_head = reads.sum(1).unflatten(0, (-1, getattr(now, "head_width", 1)))
            found[f"inner.{s}"] = -(by_head.repeat_interleave(shared, dim=0).flatten() + writes.sum(0))
        scores[name] = {**found, "stream": -stream}
    return scores
