"""Other models with mixers, tiny: those that adapters are smoke-tested on."""

from __future__ import annotations

from typing import Any

from torch import nn

WORDS = 31
VOCABULARY = dict(vocab_size=WORDS, bos_token_id=1, eos_token_id=WORDS - 1, pad_token_id=0)
ATTENTION = dict(num_attention_heads=2, num_key_value_heads=1, intermediate_size=16)
MAMBA2 = dict(mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=4, mamba_chunk_size=4)


def falcon_mamba(**changes: Any) -> nn.Module:
    from transformers import FalconMambaConfig, FalconMambaForCausalLM

    sizes = dict(hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=3, residual_in_fp32=False)
    return FalconMambaForCausalLM(FalconMambaConfig(**VOCABULARY, **{**sizes, **changes}))


def jamba() -> nn.Module:
    from transformers import JambaConfig, JambaForCausalLM

    sizes = dict(hidden_size=16, num_hidden_layers=2, attn_layer_period=2, attn_layer_offset=1)
    sizes |= dict(num_experts=2, num_experts_per_tok=1, mamba_d_state=4, mamba_dt_rank=3)
    return JambaForCausalLM(JambaConfig(**VOCABULARY, **ATTENTION, **sizes))


def granite() -> nn.Module:
    from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

    kinds = ["linear_attention", "full_attention"]
    sizes: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=2, layer_types=kinds)
    sizes |= dict(shared_intermediate_size=16, num_local_experts=0, mamba_expand=2)
    return GraniteMoeHybridForCausalLM(GraniteMoeHybridConfig(**VOCABULARY, **ATTENTION, **MAMBA2, **sizes))


def falcon_h1(**changes: Any) -> nn.Module:
    from transformers import FalconH1Config, FalconH1ForCausalLM

    sizes = dict(
        hidden_size=16, num_hidden_layers=2, mamba_d_ssm=32, ssm_in_multiplier=0.7, mamba_rms_norm=True
    )
    sizes |= dict(ssm_multipliers=[0.5, 0.9, 1.1, 1.3, 0.8])
    return FalconH1ForCausalLM(FalconH1Config(**VOCABULARY, **ATTENTION, **MAMBA2, **{**sizes, **changes}))


def nemotron_h() -> nn.Module:
    from transformers import NemotronHConfig, NemotronHForCausalLM

    sizes = dict(hidden_size=16, layers_block_type=["mamba", "attention"], head_dim=8)
    sizes |= dict(mamba_num_heads=4, mamba_head_dim=8, n_groups=2, ssm_state_size=4, chunk_size=4)
    return NemotronHForCausalLM(NemotronHConfig(**VOCABULARY, **ATTENTION, **sizes))


def zamba2() -> nn.Module:
    from transformers import Zamba2Config, Zamba2ForCausalLM

    sizes = dict(hidden_size=16, num_hidden_layers=3, layers_block_type=["mamba", "hybrid", "mamba"])
    sizes |= dict(mamba_d_state=4, mamba_ngroups=2, n_mamba_heads=4, mamba_headdim=8, chunk_size=4)
    sizes |= dict(num_mem_blocks=1, use_mem_rope=True)
    return Zamba2ForCausalLM(Zamba2Config(**VOCABULARY, **{**ATTENTION, "num_key_value_heads": 2}, **sizes))


HYBRIDS = {
    "falcon_mamba": falcon_mamba,
    "jamba": jamba,
    "granite": granite,
    "falcon_h1": falcon_h1,
    "falcon_h1 without a norm": lambda: falcon_h1(mamba_rms_norm=False),
    "nemotron_h": nemotron_h,
    "zamba2": zamba2,
}
# what their mixers cannot take: norms on B and C, a multiplier for each row
CANNOT = {name: ["additional_scan"] for name in HYBRIDS if name.startswith("falcon") or name == "jamba"}
