"""A member of PEFT's enumeration of tuners that is ours.

PEFT registers only what its enumeration `PeftType` names, and transformers reads `peft_type.value`, so that a
plain string would not do. Its members cannot be added to by inheritance; this makes one as the enumeration's
own constructor does.
"""

from __future__ import annotations

from typing import Any

from peft import PeftType

NAME = "TRANSMAMBA"
PREFIX = "transmamba_"


def member() -> PeftType:
    """`PeftType.TRANSMAMBA`, made where it is not there yet."""
    existing: Any = PeftType.__members__.get(NAME)
    if existing is not None:
        return existing
    made: Any = str.__new__(PeftType, NAME)
    made._name_, made._value_, made.__objclass__ = NAME, NAME, PeftType
    made._sort_order_ = len(PeftType)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = made
    PeftType._value2member_map_[NAME] = made
    type.__setattr__(PeftType, NAME, made)
    return made
