"""What a layer does at a call: which weights stand where, what is added inside. Kept while it is right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .families.edit import Edit, Swap
from .families.inside import Inside

# a table of parameters or buffers, a name in it, the tensor there, where it lies, how often it was written
Watched = tuple[dict[str, Any], str, Tensor, int, int]


class Plan:
    """swaps:  what is put where while the mixer runs
    inside: what its family adds within; None where its own code runs
    """

    def __init__(self, edit: Edit, inside: Inside, adapters: Iterable[nn.Module], watch: bool) -> None:
        self.swaps: list[Swap] = edit.swaps()
        self.inside = inside if inside else None
        self.watched = self._watched(adapters) if watch else None

    def _watched(self, adapters: Iterable[nn.Module]) -> list[Watched] | None:
        """The tensors that it was made of; None where one, made in inference mode, does not count writes."""
        tables = [table for part in adapters for table in (part._parameters, part._buffers)]
        places: list[tuple[dict[str, Any], str]] = [(table, name) for table in tables for name in table]
        places += [(table, name) for table, name, _ in self.swaps if isinstance(table[name], Tensor)]
        tensors = [(table, name, table[name]) for table, name in places]
        if any(tensor.is_inference() for _, _, tensor in tensors):
            return None
        return [(table, name, t, t.data_ptr(), t._version) for table, name, t in tensors]

    def holds(self) -> bool:
        """Whether all that it was made of is as it was then."""
        if self.watched is None:
            return False
        for table, name, tensor, place, version in self.watched:
            if table[name] is not tensor or tensor._version != version or tensor.data_ptr() != place:
                return False
        return True
