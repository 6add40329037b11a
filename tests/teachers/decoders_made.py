"""Small random decoders of each kind, by the name that a row of the tables has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WORDS, LENGTH = 97, 48
SHAPE: dict[str, Any] = dict(
    vocab_size=WORDS,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=LENGTH,
    tie_word_embeddings=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)

GPT2: dict[str, Any] = dict(
    n_embd=32, n_head=4, n_layer=3, n_positions=LENGTH, vocab_size=WORDS, eos_token_id=2, bos_token_id=1
)

# name -> (class, config class, arguments)
DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama 2": ("LlamaForCausalLM", "LlamaConfig", dict(num_key_value_heads=4)),
    "Llama 3 (llama3 RoPE)": ("LlamaForCausalLM", "LlamaConfig", LLAMA3),
    "Llama, linear RoPE": ("LlamaForCausalLM", "LlamaConfig", rope("linear", factor=2.0)),
    "Llama, yarn RoPE": ("LlamaForCausalLM", "LlamaConfig", YARN),
    "Llama, biases, wide heads": (
        "LlamaForCausalLM",
        "LlamaConfig",
        dict(attention_bias=True, mlp_bias=True, head_dim=12),
    ),
    "SmolLM (tied)": ("LlamaForCausalLM", "LlamaConfig", dict(tie_word_embeddings=True)),
    "Mistral": ("MistralForCausalLM", "MistralConfig", dict(sliding_window=None)),
    "Mistral, window of 5": ("MistralForCausalLM", "MistralConfig", dict(sliding_window=5)),
    "Qwen2 (QKV biases)": ("Qwen2ForCausalLM", "Qwen2Config", {}),
    "Qwen2, windows in the last layers": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ),
    "Qwen3 (q/k norms)": ("Qwen3ForCausalLM", "Qwen3Config", dict(head_dim=8)),
    "SmolLM3 (layers without RoPE)": (
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        dict(no_rope_layers=[1, 0, 1]),
    ),
    "Gemma": ("GemmaForCausalLM", "GemmaConfig", dict(head_dim=8, tie_word_embeddings=True)),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "GPT-2, scaled by the layer, untied": (
        "GPT2LMHeadModel",
        "GPT2Config",
        dict(GPT2, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False),
    ),
}


def make(name: str) -> Any:
    """In evaluation mode, with norms and biases that are not what they begin with."""
    import transformers

    model, config, changes = DECODERS[name]
    arguments = changes if config == "GPT2Config" else {**SHAPE, **changes}
    torch.manual_seed(len(name))
    made: Callable[..., Any] = getattr(transformers, model)
    built = made(getattr(transformers, config)(**arguments)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            # wide enough that attention is far from uniform
            parameter.add_(0.15 * torch.randn_like(parameter))
    return built
