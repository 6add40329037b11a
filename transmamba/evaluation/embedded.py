"""Embeddings as evaluators keep them: of length 1, in float32, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F

from ..core.batch import Batch
from ..core.task import Runner
from ..errors import UserError

Embeddings = npt.NDArray[np.float32]


def embedded(who: str, runner: Runner, batch: Batch, towers: Sequence[str]) -> dict[str, Embeddings]:
    """(N, E) of each of the `towers`, N being the rows of what that tower reads.

    In half precision a runner's embeddings are of length 1 to three digits alone: they are brought there
    again. A vector of zeros stays one.

    Raises UserError for a model, called `who`, that has not such a tower.
    """
    made = runner.embed(batch)
    for tower in towers:
        if tower not in made:
            given = f"it gives those of {', '.join(sorted(made))}" if made else "it gives none"
            raise UserError(
                f"{who} gives no {tower} embeddings ({given}); this evaluation needs a model with "
                f"{' and '.join(towers)} embeddings, such as a CLIP"
            )
    return {tower: F.normalize(made[tower].float(), dim=-1).cpu().numpy() for tower in towers}
