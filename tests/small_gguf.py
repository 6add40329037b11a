"""A language model of one block as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def save_gguf(path: Path) -> None:
    """Of random weights; its tokenizer knows the letters a to r, and ab."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(20)
    letters = [chr(ord("a") + k) for k in range(18)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", *letters, "ab"])
    writer.add_token_types([3, *[1] * 19])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    shapes = {"attn_norm": (16,), "ffn_norm": (16,), "attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16)}
    shapes |= {"attn_output": (16, 16), "ffn_gate": (24, 16), "ffn_up": (24, 16), "ffn_down": (16, 24)}
    shapes = {f"blk.0.{name}": shape for name, shape in shapes.items()}
    for name, shape in (shapes | {"token_embd": (20, 16), "output": (20, 16), "output_norm": (16,)}).items():
        writer.add_tensor(f"{name}.weight", torch.randn(*shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
