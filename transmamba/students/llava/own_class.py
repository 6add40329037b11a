"""The class of our own of a LLaVA with cross-Mamba, with fewer tokens of a picture or over a decoder of our
own, whose code lies with that of hybrids."""

from __future__ import annotations

from typing import Any

OWN = "transmamba_llava"
# what transformers loads with `trust_remote_code`
AUTO_MAP = {
    "AutoConfig": "configuration_llava_transmamba.CrossLlavaConfig",
    "AutoModelForImageTextToText": "modeling_llava_transmamba.CrossLlavaForConditionalGeneration",
}


def config_class(model_type: Any) -> Any:
    """That of a model_type; None where transformers knows it."""
    if model_type != OWN:
        return None
    from ..hybrid_lm.own.configuration_llava_transmamba import CrossLlavaConfig

    return CrossLlavaConfig


def model_class(model_type: Any) -> Any:
    """What loads, and makes, a model of that type."""
    if model_type != OWN:
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText
    from ..hybrid_lm.own.modeling_llava_transmamba import CrossLlavaForConditionalGeneration

    return CrossLlavaForConditionalGeneration
