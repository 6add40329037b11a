"""The tuner in PEFT's tables; whoever imports this module finds it there."""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from .config import MambaPeftConfig
from .peft_type import NAME, PREFIX, member
from .tuner import MambaPeftModel

PEFT_TYPE = member()

if PEFT_TYPE not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(
        name=NAME.lower(), config_cls=MambaPeftConfig, model_cls=MambaPeftModel, prefix=PREFIX
    )
