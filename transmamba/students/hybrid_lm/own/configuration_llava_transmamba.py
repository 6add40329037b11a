# SPDX-License-Identifier: Apache-2.0
"""Configuration of a LLaVA whose pictures know the question, or are of fewer tokens than their patches
(modeling_llava_transmamba.py)."""

from transformers import LlavaConfig


class CrossLlavaConfig(LlavaConfig):
    """transmamba["cross"], None for none: mode, num_heads, state_size, width, conv_kernel, length of
    cross-Mamba (cross_transmamba.py); every: behind every n-th layer of the vision tower, None for once
    before the projector; prompt: own, or shuffled, of the row before
    transmamba["image_tokens"], where it is there: of a picture, the means of so many cells of its patches

    The rest is transformers'.
    """

    model_type = "transmamba_llava"
