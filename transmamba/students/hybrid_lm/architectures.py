"""The classes that hold a hybrid exactly, two of transformers' and one of our own, and what each calls a
layer's parts.

All have RMSNorms before attention or Mamba-2 and before a SwiGLU MLP, rotary positions in attention and none
in Mamba-2; they differ in names, in which biases they have, and in whether queries and keys are normalised. A
configuration of theirs is all that a student is built from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import UserError
from .upcycled import Upcycled

Kind = Literal[
    "full_attention", "window_attention", "window_mamba", "linear_attention", "mamba", "switch_mamba"
]
# how Mamba-2 layers begin
Mixers = Literal["attention", "mamba2", "random"]

# key of config.json: what transformers' class does not say of our student
OURS = "transmamba"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One class.

    model_type: as its config.json has it
    mlp_norm, mlp, last_norm: what it calls the norm before an MLP, the MLP, the norm before the head
    fused:    whether the MLP's gate and up projections are one matrix
    mlp_bias: whether an MLP may have biases
    rotary:   the class of its rotary positions, in its modelling file
    experts:  what it calls experts in an MLP's place; None where it has none
    """

    model_type: str
    mlp_norm: str
    mlp: str
    last_norm: str
    fused: bool
    mlp_bias: bool
    rotary: str
    experts: str | None = None


BAMBA = Architecture(
    model_type="bamba",
    mlp_norm="pre_ff_layernorm",
    mlp="feed_forward",
    last_norm="final_layernorm",
    fused=False,
    mlp_bias=True,
    rotary="BambaRotaryEmbedding",
)
GRANITE = Architecture(
    model_type="granitemoehybrid",
    mlp_norm="post_attention_layernorm",
    mlp="shared_mlp",
    last_norm="norm",
    fused=True,
    mlp_bias=False,
    rotary="GraniteMoeHybridRotaryEmbedding",
    experts="block_sparse_moe",
)
# the class of our own, saved with its code
OWN = Architecture(
    model_type="transmamba_hybrid",
    mlp_norm="post_attention_layernorm",
    mlp="mlp",
    last_norm="norm",
    fused=False,
    mlp_bias=True,
    rotary="LlamaRotaryEmbedding",
    experts="mlp",
)
ARCHITECTURES: Mapping[str, Architecture] = {"bamba": BAMBA, "granite": GRANITE, "own": OWN}


def architecture_of(config: Any) -> Architecture:
    """Of a configuration of transformers. Raises UserError for another class's."""
    for architecture in ARCHITECTURES.values():
        if config.model_type == architecture.model_type:
            return architecture
    known = ", ".join(each.model_type for each in ARCHITECTURES.values())
    raise UserError(
        f"a hybrid_lm is saved as {known}; this configuration's model_type is {config.model_type}"
    )


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Heads of a Mamba-2 mixer that has attention's: `real` of them, each of `size` channels and states, and
    more where the class wants whole multiples of the stream's width.

    expand: inner channels a channel of the stream
    """

    real: int
    size: int
    all: int
    expand: int

    @classmethod
    def of(cls, width: int, real: int, size: int) -> Heads:
        """The fewest that a whole `expand` makes of the stream's width."""
        expand = math.ceil(real * size / width)
        while expand * width % size:
            expand += 1
        return cls(real=real, size=size, all=expand * width // size, expand=expand)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a hybrid is made of; words and special tokens beside it in `special`.

    attention_layers: those that keep attention, by the student's own numbers
    qk_norm: whether queries and keys are normalised, head by head
    experts: what the MLPs become; None where they stay
    special: of the teacher's configuration, as it is: bos_token_id ...
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_size: int
    neurons: int
    eps: float
    attention_layers: tuple[int, ...]
    attention_bias: bool
    mlp_bias: bool
    tied: bool
    rope: Mapping[str, Any]
    special: Mapping[str, Any]
    qk_norm: bool = False
    experts: Upcycled | None = None


def make_config(kind: Literal["bamba", "granite"], shape: Shape) -> Any:
    """transformers' configuration. A hybrid without attention has one layer more, of attention and all zero:
    the class's cache counts tokens by an attention layer, and raises where there is none."""
    pure = not shape.attention_layers
    depth = shape.depth + pure
    attention = (shape.depth,) if pure else shape.attention_layers
    common = {**_common(shape), "num_hidden_layers": depth, OURS: {"student": "hybrid_lm", "null": int(pure)}}
    return (_bamba if kind == "bamba" else _granite)(shape, attention, common)


def _common(shape: Shape) -> dict[str, Any]:
    heads = Heads.of(shape.width, shape.heads, shape.head_size)
    # only where it says something: readers of the class elsewhere derive it
    own_size = {} if shape.heads * shape.head_size == shape.width else {"head_dim": shape.head_size}
    return {
        **shape.special,
        **own_size,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": shape.eps,
        "tie_word_embeddings": shape.tied,
        "attention_bias": shape.attention_bias,
        "mamba_expand": heads.expand,
        "mamba_chunk_size": 256,
        **mamba_sizes(heads.all, heads.size),
    }


def mamba_sizes(heads: int, size: int) -> dict[str, Any]:
    """Of a mixer with attention's heads, each of `size` channels and states."""
    return {
        "mamba_n_heads": heads,
        "mamba_d_head": size,
        "mamba_n_groups": heads,
        "mamba_d_state": size,
        "mamba_d_conv": 4,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,  # padded tokens would carry it into the convolution of those behind them
    }


def _bamba(shape: Shape, attention: Sequence[int], common: Mapping[str, Any]) -> Any:
    from transformers import BambaConfig

    return BambaConfig(
        **common,
        attn_layer_indices=list(attention),
        intermediate_size=shape.neurons,
        mlp_bias=shape.mlp_bias,
        # as a keyword of its own the class puts 0.5 in its place
        rope_parameters={**shape.rope, "partial_rotary_factor": 1.0},
    )


def _granite(shape: Shape, attention: Sequence[int], common: Mapping[str, Any]) -> Any:
    from transformers import GraniteMoeHybridConfig

    experts = shape.experts
    kinds = ["linear_attention"] * common["num_hidden_layers"]
    for layer in attention:
        kinds[layer] = "full_attention"
    return GraniteMoeHybridConfig(
        **common,
        layer_types=kinds,
        num_local_experts=experts.count if experts else 0,
        num_experts_per_tok=experts.chosen if experts else 0,
        intermediate_size=shape.neurons,
        # beside experts the class has an MLP for all tokens, too: one of no neurons adds nothing
        shared_intermediate_size=0 if experts else shape.neurons,
        position_embedding_type="rope",  # its default is none at all
        rope_parameters=dict(shape.rope),
        attention_multiplier=shape.head_size**-0.5,
        embedding_multiplier=1.0,
        logits_scaling=1.0,
        residual_multiplier=1.0,
    )


def kinds_of(config: Any) -> tuple[Kind, ...]:
    """Of the student's layers, without those that the class has beyond them."""
    if architecture_of(config) is OWN:
        return tuple(config.layer_kinds)
    return tuple(config.layers_block_type[: config.num_hidden_layers - null_layers(config)])


def expert_layers(config: Any) -> tuple[int, ...]:
    """The student's layers that have experts in the place of an MLP."""
    architecture = architecture_of(config)
    if architecture.experts is None:
        return ()
    if architecture is OWN:
        return tuple(config.expert_layers)
    return tuple(range(len(kinds_of(config)))) if config.num_local_experts else ()


def rotary_of(config: Any) -> Any:
    """The class's own rotary positions: its `inv_freq` (R/2,) and `attention_scaling`."""
    import importlib

    name = "llama" if architecture_of(config) is OWN else config.model_type
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    return getattr(module, architecture_of(config).rotary)(config)


def null_layers(config: Any) -> int:
    """How many layers of zeros a student has behind its own: one of attention where it keeps none."""
    return int(getattr(config, OURS)["null"])


def normalises(config: Any) -> bool:
    """Whether queries and keys are normalised, and so are C and B."""
    return bool(getattr(config, "qk_norm", False))


def head_size_of(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
