"""Which layers keep attention, where a recipe does not write their numbers: the file of `transmamba
select-layers`, and patterns that others have published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import UserError, refuse_all

FORMAT = "transmamba layers 1"
# MambaInLlama (arXiv 2408.15237) keeps the odd layers at half of them; mmMamba's best of four patterns at a
# quarter is every fourth from the first on
Pattern = Literal["every_2nd_from_1", "every_4th_from_0"]
PATTERNS: Mapping[str, tuple[int, int]] = {"every_2nd_from_1": (1, 2), "every_4th_from_0": (0, 4)}
# of a teacher, by which its file is known: keys of `shape.teacher_shape`
_TOLD = ("layers", "width", "heads", "kv_heads", "vocabulary")


@dataclass(frozen=True, kw_only=True)
class LayersFile:
    """The first of the layers that `transmamba select-layers` has put in order.

    file: what it wrote
    keep: how many of them keep attention
    """

    file: str
    keep: int

    def __post_init__(self) -> None:
        refuse_all([] if self.keep >= 1 else [f"keep is {self.keep}; write a number of layers, at least 1"])

    def read(self, teacher: Mapping[str, int]) -> tuple[int, ...]:
        """The teacher's layers, in their own order.

        teacher: its `shape.teacher_shape`. Raises UserError for a file that is none, or that is of another
        teacher, and for more layers than it has in order.
        """
        found = read_file(Path(self.file).expanduser())
        theirs = {name: found["teacher"].get(name) for name in _TOLD}
        mine = {name: teacher[name] for name in _TOLD}
        if theirs != mine:
            raise UserError(
                f"student.attention_layers: {self.file} is of a teacher with {_listed(theirs)}, this one has "
                f"{_listed(mine)}; run transmamba select-layers with this one"
            )
        order: Sequence[int] = found["order"]
        if self.keep > len(order):
            raise UserError(
                f"student.attention_layers.keep is {self.keep}, but {self.file} has {len(order)} layers in "
                f"order; write at most that, or run transmamba select-layers --keep {self.keep}"
            )
        return tuple(sorted(order[: self.keep]))


def read_file(path: Path) -> dict[str, Any]:
    """What `transmamba select-layers` wrote. Raises UserError for anything else."""
    wanted = "write the JSON file of transmamba select-layers"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"student.attention_layers.file is {str(path)!r}: {error.strerror}; {wanted}"
        ) from None
    except ValueError as error:
        raise UserError(
            f"student.attention_layers.file is {str(path)!r}: no JSON ({error}); {wanted}"
        ) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT or not _sound(found):
        raise UserError(f"student.attention_layers.file is {str(path)!r}: not of {FORMAT!r}; {wanted}")
    return found


def _sound(found: Mapping[str, Any]) -> bool:
    """Whether what is read of it is there."""
    order, teacher = found.get("order"), found.get("teacher")
    if not isinstance(order, list) or not isinstance(teacher, dict):
        return False
    return all(type(layer) is int for layer in order) and len(set(order)) == len(order)


def _listed(shape: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shape.items())


def asked_layers(
    asked: Sequence[int] | Pattern | LayersFile, chosen: Sequence[int], teacher: Mapping[str, int]
) -> tuple[int, ...]:
    """The teacher's layers that keep attention.

    chosen:  the teacher's layer behind each of the student's, of which a pattern counts
    teacher: its `shape.teacher_shape`
    Raises UserError as `LayersFile.read` does.
    """
    if isinstance(asked, LayersFile):
        return asked.read(teacher)
    if isinstance(asked, str):
        first, step = PATTERNS[asked]
        return tuple(chosen[first::step])
    return tuple(asked)
