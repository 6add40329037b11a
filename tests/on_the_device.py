"""What is to be recorded, run on tensors that lie on a GPU in name alone: whatever a recording refuses, or
would freeze, is an error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OnTheDevice(TorchDispatchMode):
    """Every operation works on the GPU, draws nothing and says nothing to the host."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "item", "equal", "is_nonzero", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert not any(name.startswith(wait) for wait in self.WAITS), f"{name} waits for the GPU"
        assert torch.Tag.nondeterministic_seeded not in function.tags, f"{name} draws"
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, made)):
            if isinstance(tensor, Tensor):
                assert tensor.device.type == "cuda", f"{name} has a tensor of the host's"
        self.operations += 1
        return made
