# SPDX-License-Identifier: Apache-2.0
"""Configuration of a LLaVA whose pictures know the question, or are of fewer tokens than their patches
(modeling_llava_transmamba.py)."""

from typing import Any

from transformers import LlavaConfig

from .configuration_transmamba import HybridConfig


class CrossLlavaConfig(LlavaConfig):
    """transmamba["cross"], None for none: mode, num_heads, state_size, width, conv_kernel, length of
    cross-Mamba (cross_transmamba.py); every: behind every n-th layer of the vision tower, None for once
    before the projector; prompt: own, or shuffled, of the row before
    transmamba["image_tokens"], where it is there: of a picture, the means of so many cells of its patches

    The rest is transformers'; the decoder may be of our own class, too (configuration_transmamba.py).
    """

    model_type = "transmamba_llava"

    def __init__(self, *args: Any, text_config: Any = None, **kwargs: Any) -> None:
        if isinstance(text_config, dict) and text_config.get("model_type") == HybridConfig.model_type:
            text_config = HybridConfig(**{k: v for k, v in text_config.items() if k != "model_type"})
        super().__init__(*args, text_config=text_config, **kwargs)
