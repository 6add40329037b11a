"""Which module's stream an embedding begins: the one that soft tokens come into, and whose class token and
positions stand beside it.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

_OWNERS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()


def note_owner(model: nn.Module, name: str, embedding: nn.Module) -> None:
    """Of an embedding by its name in `model`: the nearest module around it that is one of our students', or
    that transformers calls with `inputs_embeds`."""
    around: Any
    while name:
        name = name.rpartition(".")[0]
        around = model.get_submodule(name)
        if hasattr(around, "adapting") or is_stream(around):
            _OWNERS[embedding] = weakref.ref(around)
            return


def is_stream(module: nn.Module) -> bool:
    """Whether it is a model of transformers without a head."""
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel) and hasattr(module, "layers")


def owner_of(embedding: nn.Module) -> nn.Module | None:
    found = _OWNERS.get(embedding)
    return None if found is None else found()
