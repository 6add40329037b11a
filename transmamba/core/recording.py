"""Whether what runs now is recorded, to be replayed with other numbers of the same shapes."""

from __future__ import annotations

import torch


def recording() -> bool:
    """Under a CUDA graph's capture: nothing may wait for the GPU, and no shape may follow from numbers."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
