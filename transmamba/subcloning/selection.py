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

from ..errors import UserError
from ..views.view import View

if TYPE_CHECKING:
    from ..teachers.teacher import Teacher


class Selection:
    """Which coordinates of the teacher a student of width `width` keeps.

    `scores` maps `residual` (D,), `value.{t}` (D,) and `neuron.{t}` (F,) to importance; a missing name means
    the uniform choice. `paired`: values go to two inner channels each, see `SubcloneConfig.average`.
    """

    def __init__(
        self,
        view: View,
        width: int,
        scores: Mapping[str, Tensor] | None = None,
        paired: bool = False,
    ) -> None:
        self._scores = scores or {}
        self.paired = paired
        self.residual = self._choose("residual", view.width, width)

    def values(self, block: int, full: int, count: int) -> Tensor:
        """`count` of the `full` value channels of attention `block`."""
        return self._choose(f"value.{block}", full, count)

    def neurons(self, block: int, full: int, count: int) -> Tensor:
        """`count` of the `full` hidden neurons of MLP `block`."""
        return self._choose(f"neuron.{block}", full, count)

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


@torch.no_grad()
def activation_scores(teacher: Teacher, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean |activation| of every residual coordinate (over all blocks), value channel and neuron.

    `batches` yields images (B, C, H, W) as the teacher wants them. Raises UserError when there are none.
    """
    sums: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()

    def observe(name: str, tensor: Tensor) -> None:
        key = "residual" if name.startswith("residual") else name
        flat = tensor.float().abs().flatten(0, -2)
        sums[key] = sums.get(key, 0) + flat.sum(dim=0)
        counts[key] += len(flat)

    for images in batches:
        teacher.view.run(images, observe=observe)
    if not sums:
        raise UserError("subcloning by activation needs calibration images; set init.importance to 'uniform'")
    return {key: (total / counts[key]).cpu() for key, total in sums.items()}


@torch.no_grad()
def change_scores(view: View, base: View) -> dict[str, Tensor]:
    """Minus the summed |fine-tuned - base| of every weight that touches a coordinate: what moved least
    matters most (the criterion reported of arXiv 2502.15130). Raises UserError when the two teachers differ
    in shape."""
    if view.width != base.width or len(view.blocks) != len(base.blocks):
        raise UserError(
            "init.base has another width or depth than the teacher; give its own pretrained version"
        )
    residual = torch.zeros(view.width)
    scores: dict[str, Tensor] = {}
    for t, (block, old) in enumerate(zip(view.blocks, base.blocks, strict=True)):
        moved_v = (block.attention.v.weight - old.attention.v.weight).abs().cpu()
        moved_o = (block.attention.o.weight - old.attention.o.weight).abs().cpu()
        moved_up = (block.mlp.up.weight - old.mlp.up.weight).abs().cpu()
        moved_down = (block.mlp.down.weight - old.mlp.down.weight).abs().cpu()
        residual += moved_v.sum(0) + moved_o.sum(1) + moved_up.sum(0) + moved_down.sum(1)
        scores[f"value.{t}"] = -(moved_v.sum(1) + moved_o.sum(0))
        scores[f"neuron.{t}"] = -(moved_up.sum(1) + moved_down.sum(0))
    return {**scores, "residual": -residual}
