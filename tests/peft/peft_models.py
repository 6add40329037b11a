"""Models with mixers of two layers and width 16, all parameters random, and what adapters are tried on."""

from __future__ import annotations

import functools
from typing import Any

import torch
from hybrid_models import HYBRIDS, VOCABULARY, WORDS
from peft import get_peft_model
from randomised import randomise_
from torch import Tensor, nn

from transmamba.peft import MambaPeftConfig


def mamba(**changes: Any) -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    sizes = dict(hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=3, residual_in_fp32=False)
    return MambaForCausalLM(MambaConfig(**{**VOCABULARY, **sizes, **changes}))


def mamba2(**changes: Any) -> nn.Module:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    sizes = dict(hidden_size=16, state_size=4, num_hidden_layers=2, num_heads=4, head_dim=8, n_groups=2)
    sizes |= dict(chunk_size=4, residual_in_fp32=False)
    return Mamba2ForCausalLM(Mamba2Config(**VOCABULARY, **{**sizes, **changes}))


def bamba(**changes: Any) -> nn.Module:
    from transformers import BambaConfig, BambaForCausalLM

    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, attn_layer_indices=[1])
    sizes |= dict(num_attention_heads=2, num_key_value_heads=1, mamba_n_heads=4, mamba_d_head=8)
    sizes |= dict(mamba_n_groups=2, mamba_d_state=4, mamba_chunk_size=4)
    return BambaForCausalLM(BambaConfig(**VOCABULARY, **{**sizes, **changes}))


MODELS = {"mamba": mamba, "mamba2": mamba2, "bamba": bamba}
LORA = [f"lora_{name}" for name in ("in", "x", "z", "out", "x_proj", "dt", "d", "b", "c", "embed")]
INSIDE = ["state_offset_h", "state_offset_y", "parallel_adapter", "initial_state"]
RANDOM = ["affix", "prompt"]  # tokens that are drawn, and so no identity at the start
AT_START = ["initial_state", "affix", "prompt"]  # what begins before a text's first token
AT_INPUT = ["cls_token", "pos_embed"]  # of pictures
MERGED = [*LORA, "a", "d", "bias", "conv1d", "bitfit", "additional_scan", "sdt"]
METHODS = [*MERGED, *INSIDE, *RANDOM]


@functools.cache
def _state(name: str) -> dict[str, Tensor]:
    model = (MODELS | HYBRIDS)[name]()
    randomise_(model)
    return model.state_dict()


def base(name: str) -> Any:
    """The same numbers at every call; frozen, for PyTorch convolves frozen weights in other code."""
    model = (MODELS | HYBRIDS)[name]().eval().requires_grad_(False)
    model.load_state_dict(_state(name))
    return model


def adapted(name: str, methods: list[Any], trained: bool = True, **options: Any) -> Any:
    """With an adapter whose tensors are random, as after training, or at their start."""
    model = base(name)
    torch.manual_seed(1)
    model = get_peft_model(model, MambaPeftConfig(methods=methods, task_type="CAUSAL_LM", **options))
    model.eval()
    if trained:
        train_(model)
    return model


@torch.no_grad()
def train_(model: Any, seed: int = 2, size: float = 0.2) -> None:
    """Moves what is trained away from its start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += size * torch.randn(parameter.shape, generator=generator)


def words(rows: int = 2, length: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(3, WORDS - 1, (rows, length), generator=torch.Generator().manual_seed(seed))
