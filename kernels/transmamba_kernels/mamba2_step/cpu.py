"""The step in plain PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..ssd_state_update import cpu as ssd
from . import reference


def mamba2_step(**arguments: Any) -> Tensor:
    """Arguments as in `transmamba_kernels.mamba2_step`; y (B, H P)."""
    return reference.mamba2_step(**arguments, update=ssd.ssd_state_update)
