"""Items that several processes measured, each once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def once(parts: Sequence[Ints]) -> tuple[Ints, Ints]:
    """(numbers (N,), places (N,)) of items whose numbers come in parts: in their split's order however it was
    shared out, an item that two processes had once. A place counts through all parts."""
    index, chosen = np.unique(np.concatenate(parts), return_index=True)
    return index, chosen
