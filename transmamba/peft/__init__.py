"""Adapters made for Mamba, as tuners of Hugging Face PEFT.

`peft.get_peft_model(model, MambaPeftConfig(methods=["lora_x"]))`, and all that PEFT's users know. Importing
this package, or `transmamba` and peft in either order, registers the tuner in PEFT.
"""

from __future__ import annotations

from ..errors import MissingExtra

try:
    import peft as _peft  # noqa: F401
except ImportError as error:
    raise MissingExtra("adapters need peft: pip install 'transmamba[peft]'") from error

from .config import MambaPeftConfig
from .layer import MambaPeftLayer
from .registration import PEFT_TYPE
from .seed import Seed, bake, compile_cache
from .tuner import MambaPeftModel

__all__ = [
    "PEFT_TYPE",
    "MambaPeftConfig",
    "MambaPeftLayer",
    "MambaPeftModel",
    "Seed",
    "bake",
    "compile_cache",
]
