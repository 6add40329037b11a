"""What every reader of pairs returns: pictures by number, each with its captions."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image


class PairSource(Protocol):
    """One split of a data set of pictures and captions. Its order never changes: a picture's number
    identifies it across runs.

    skipped: how many pairs were left out when the split was read, for a reason that its reader has said
    """

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int:
        """Pictures."""

    def image(self, index: int) -> Image.Image:
        """The picture as stored. Raises UserError naming it when it does not decode."""

    def captions(self, index: int) -> tuple[str, ...]:
        """What is said of it, in a fixed order: one caption, several, or none where there are pictures
        alone."""

    def array(self) -> npt.NDArray[np.uint8] | None:
        """All pictures, (N, H, W, C), when they are in memory and of one size; None otherwise."""
