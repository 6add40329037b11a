# SPDX-License-Identifier: Apache-2.0
"""Configuration of a language model whose layers mix tokens each in its own way (modeling_transmamba.py)."""

from typing import Any

from transformers import PretrainedConfig

KINDS = ("full_attention", "window_attention", "window_mamba", "linear_attention", "mamba", "switch_mamba")
MLPS = ("swiglu", "relu", "none")


class HybridConfig(PretrainedConfig):
    """layer_kinds: of each layer, one of KINDS
    window, sinks: in a layer of window_attention a token reads the last `window` tokens, itself included, and
        the first `sinks` of its text; in one of window_mamba a scan reads those between as well
    scan: whether it does; without, a layer of window_mamba is one of window_attention
    attention_bias, mlp_bias: whether those linears have biases
    qk_norm: whether each head of q and k is normalised before it is turned; in layers of linear_attention,
        Mamba-2's, each head of C and B
    mamba_n_heads, mamba_d_head, mamba_n_groups, mamba_d_state, mamba_d_conv: of those layers: heads, their
        channels, heads of B and C, states, taps

    mamba_expand, mamba_d_state, mamba_d_conv: of layers of mamba and switch_mamba, which have Mamba's own
        mixer
    mlp: what stands behind mixers, one of MLPS; relu has no gate, and neither has a bias
    parallel: whether it reads the stream that the mixer reads
    num_experts: of each of `expert_layers`, whose MLP they take the place of, and of each of the projections
        `inner_experts` (conv, gate, out) of a layer of switch_mamba
    num_experts_per_tok, norm_topk_prob, router_scale: experts of a token, whether their probabilities are
        brought to a sum of 1, and a fixed factor of them

    The other names are Llama's.
    """

    model_type = "transmamba_hybrid"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        vocab_size: int = 128,
        hidden_size: int = 64,
        intermediate_size: int = 128,
        layer_kinds: Any = ("full_attention",),
        num_attention_heads: int = 4,
        num_key_value_heads: int = 4,
        head_dim: int = 16,
        window: int = 0,
        sinks: int = 0,
        scan: bool = True,
        attention_bias: bool = False,
        mlp_bias: bool = False,
        qk_norm: bool = False,
        mamba_n_heads: int = 4,
        mamba_d_head: int = 16,
        mamba_n_groups: int = 4,
        mamba_d_state: int = 16,
        mamba_d_conv: int = 4,
        mamba_conv_bias: bool = True,
        mamba_proj_bias: bool = False,
        mamba_expand: int = 2,
        mlp: str = "swiglu",
        parallel: bool = False,
        num_experts: int = 0,
        num_experts_per_tok: int = 1,
        norm_topk_prob: bool = False,
        router_scale: float = 1.0,
        expert_layers: Any = (),
        inner_experts: Any = (),
        rms_norm_eps: float = 1e-5,
        rope_parameters: Any = None,
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        if unknown := sorted(set(layer_kinds) - set(KINDS)):
            raise ValueError(f"layer_kinds has {unknown[0]!r}; known: {', '.join(KINDS)}")
        if {"window_attention", "window_mamba"} & set(layer_kinds) and (window < 1 or sinks < 0):
            raise ValueError(f"window is {window}, sinks {sinks}; write at least 1 and 0")
        if mamba_proj_bias or not mamba_conv_bias:
            raise ValueError("layers of linear_attention have a bias in the convolution, in no projection")
        if mlp not in MLPS:
            raise ValueError(f"mlp is {mlp!r}; known: {', '.join(MLPS)}")
        if (expert_layers or inner_experts) and num_experts < 2:
            raise ValueError(f"num_experts is {num_experts}; write at least 2")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.layer_kinds = list(
            layer_kinds
        )  # not `layer_types`, by which transformers makes caches of its own
        self.num_hidden_layers = len(self.layer_kinds)
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.window = window
        self.sinks = sinks
        self.scan = scan
        self.attention_bias = attention_bias
        self.mlp_bias = mlp_bias
        self.qk_norm = qk_norm
        self.mamba_n_heads = mamba_n_heads
        self.mamba_d_head = mamba_d_head
        self.mamba_n_groups = mamba_n_groups
        self.mamba_d_state = mamba_d_state
        self.mamba_d_conv = mamba_d_conv
        self.mamba_conv_bias = mamba_conv_bias
        self.mamba_proj_bias = mamba_proj_bias
        self.mamba_expand = mamba_expand
        self.mlp = mlp
        self.parallel = parallel
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.norm_topk_prob = norm_topk_prob
        self.router_scale = router_scale
        self.expert_layers = list(expert_layers)
        self.inner_experts = list(inner_experts)
        self.rms_norm_eps = rms_norm_eps
        self.rope_parameters = rope_parameters or {"rope_type": "default", "rope_theta": 10000.0}
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        kwargs.pop("num_hidden_layers", None)  # follows from layer_kinds
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
