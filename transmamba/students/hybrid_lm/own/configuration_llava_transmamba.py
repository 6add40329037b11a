# SPDX-License-Identifier: Apache-2.0
"""Configuration of a LLaVA whose pictures know the question (modeling_llava_transmamba.py)."""

from transformers import LlavaConfig


class CrossLlavaConfig(LlavaConfig):
    """transmamba["cross"]: mode, num_heads, state_size, width, conv_kernel, length of cross-Mamba
    (cross_transmamba.py); every: behind every n-th layer of the vision tower, None for once before the
    projector

    The rest is transformers'.
    """

    model_type = "transmamba_llava"
