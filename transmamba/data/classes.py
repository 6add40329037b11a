"""Names of classes: whether two lists of them mean the same, and in what order."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UserError

# Names that say no more than a position does; ImageNet's classes are in the order of their WordNet numbers.
_NUMBER = re.compile(r"(?:(?:class|label)[ _-]?)?\d+|n\d{8}", re.IGNORECASE)
_UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls the classes of a model that names none
_SHOWN = 5


def count_of(model: Any) -> int | None:
    """How many classes a model tells apart, by its `num_classes` or its Hugging Face config; None or 0 of a
    backbone."""
    count = getattr(model, "num_classes", None)
    if count is not None:
        return int(count)
    if getattr(model, "vocabulary", None):
        return None  # a model of words: its config is transformers', too
    if hasattr(model, "base_model_prefix") and "ForImageClassification" not in type(model).__name__:
        return None  # transformers gives every config two labels
    return getattr(getattr(model, "config", None), "num_labels", None)


def names_of(model: Any) -> tuple[str, ...] | None:
    """What a model calls its classes: `class_names`, its config's `id2label`, or the `label_names` that a
    student carries of its teacher in its `pretrained_cfg`; None where it names none."""
    names = getattr(model, "class_names", None)
    if names is None:
        named = getattr(getattr(model, "config", None), "id2label", None) or _carried(model)
        names = _in_order(named) if isinstance(named, Mapping) else named
    if not names or not all(isinstance(name, str) for name in names):
        return None
    if all(_UNNAMED.fullmatch(name) for name in names):
        return None
    return tuple(names)


def joined(mine: Sequence[str], theirs: Sequence[str], who: str) -> npt.NDArray[np.int64] | None:
    """For each of the data's classes `mine` its number among the classes `theirs` of `who`, (K,).

    None where only positions can tell: one side's names are no names but numbers. Raises UserError where both
    have names and those differ.
    """
    if tuple(mine) == tuple(theirs):
        return np.arange(len(mine), dtype=np.int64)
    if set(mine) == set(theirs) and len(set(mine)) == len(mine) == len(theirs):
        number = {name: position for position, name in enumerate(theirs)}
        return np.array([number[name] for name in mine], dtype=np.int64)
    if not (_says_something(mine) and _says_something(theirs)):
        return None
    difference = disagreement("the data", mine, who, theirs)
    if not difference:  # the same names, some of them twice: nothing to tell those apart by
        raise UserError(f"{who} and the data give one name to several classes, in different orders")
    raise UserError(
        f"{who} was made for other classes than the data's ({difference}); give the data's classes the names "
        "that it knows, or fit its head first: recipes/distill.py --config recipes/configs/finetune_head.yaml"
    )


def disagreement(one: str, mine: Sequence[str], other: str, theirs: Sequence[str]) -> str:
    """Which names only `one` or only `other` has, in a line; nothing where they have the same."""
    only = [(one, sorted(set(mine) - set(theirs))), (other, sorted(set(theirs) - set(mine)))]
    lines = [
        f"only in {who}: {', '.join(names[:_SHOWN])}" + (" ..." if len(names) > _SHOWN else "")
        for who, names in only
        if names
    ]
    plain = [{unicodedata.normalize("NFC", name) for name in names} for _, names in only]
    if alike := sorted(plain[0] & plain[1]):
        lines.append(f"{alike[0]} is written in two ways that look alike: Unicode's NFC and NFD; rename one")
    return "; ".join(lines)


def numbered_as_text(names: Sequence[str]) -> bool:
    """Whether they are whole numbers, but in the order of text: 0, 1, 10, 2."""
    return all(name.isdecimal() for name in names) and list(map(int, names)) != sorted(map(int, names))


def _carried(model: Any) -> Any:
    """`label_names` of its pretrained_cfg, where they are of the head that it has now."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ()
    return names if len(names) == count_of(model) else None


def _in_order(labels: Mapping[Any, Any]) -> list[Any] | None:
    """The names of a mapping from numbers; None where its keys are others, such as WordNet's."""
    if not all(str(key).isdecimal() for key in labels):
        return None
    return [labels[key] for key in sorted(labels, key=int)]


def _says_something(names: Sequence[str]) -> bool:
    return not all(_NUMBER.fullmatch(name) for name in names)
