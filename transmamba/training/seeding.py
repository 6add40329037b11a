"""The generators of a step, without what torch.manual_seed does beside."""

from __future__ import annotations

import torch


def seed_generators(seed: int, device: torch.device) -> None:
    """The default generators of the CPU and of `device`.

    As torch.manual_seed does it, which also writes down the whole call stack for each kind of accelerator
    that is not in use, with a look at every source file on the disk: half a millisecond a step.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
