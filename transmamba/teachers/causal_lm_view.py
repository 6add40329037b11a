"""The canonical view of Hugging Face's decoders: Llama and its kin by their modules' names, and GPT-2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.layout import Sequence
from ..views.embeddings import TokenEmbedding
from ..views.heads import LanguageHead
from ..views.rope import Rope
from ..views.sublayers import Affine, Attention, Mlp, Norm, Sublayer
from ..views.view import Tower, View
from .check import affine, layer_norm
from .teacher import refuse

# one module tree: model.{embed_tokens, layers, norm}, self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj
LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma")
# hybrids, of which those are read whose layers all have attention: what our students are saved as. What they
# call the norm before an MLP, the MLP and the last norm
HYBRIDS = {
    "bamba": ("pre_ff_layernorm", "feed_forward", "final_layernorm"),
    "granitemoehybrid": ("post_attention_layernorm", "shared_mlp", "norm"),
}
_LLAMA = ("post_attention_layernorm", "mlp", "norm")
MODEL_TYPES = (*LLAMAS, *HYBRIDS, "gpt2")
# of a Granite's configuration, numbers that a view has no place for unless they are these
_PLAIN = {
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "num_local_experts": 0,
}
# kinds of rotary positions whose frequencies depend on the length of the text
_MOVING = ("dynamic", "longrope")


def decoder_view(model: Any) -> View:
    """The view of a `...ForCausalLM`; its tensors are the model's own, but for Gemma's norms.

    Raises UserError for what the view cannot express.
    """
    kind = model.config.model_type
    if kind not in MODEL_TYPES:
        raise refuse(type(model).__name__, f"known decoders: {', '.join(MODEL_TYPES)}", model_type=kind)
    tower = decoder_tower(base_of(model))
    head = affine(model.get_output_embeddings(), "lm_head")
    tied = head.weight is tower.embedding.weight
    heads = {"decoder": LanguageHead(head, tied=tied)}
    return View({"decoder": tower}, heads, config=model.config.to_dict())


def decoder_tower(base: Any) -> Tower:
    """Of the model without its head."""
    return _gpt2(base) if base.config.model_type == "gpt2" else _llama(base)


def base_of(model: Any) -> Any:
    """The model below the head."""
    return getattr(model, model.base_model_prefix)


def blocks_of(base: Any) -> list[nn.Module]:
    return list(base.h if base.config.model_type == "gpt2" else base.layers)


def _llama(base: Any) -> Tower:
    config = base.config
    rope = _rope(base.rotary_emb)
    check_layers(config)
    gemma = config.model_type == "gemma"
    norm: Callable[[Any], Norm] = _gemma_norm if gemma else _rms_norm
    sublayers: list[Sublayer] = []
    for i, layer in enumerate(base.layers):
        sublayers += [
            _attention(layer, f"layers.{i}", config, rope, norm),
            _mlp(layer, f"layers.{i}", config, norm),
        ]
    rows = base.embed_tokens.weight
    # in the rows' precision, as it is multiplied there
    scale = float(torch.tensor(config.hidden_size**0.5, dtype=rows.dtype)) if gemma else 1.0
    embedding = TokenEmbedding(rows, scale=scale)
    last = getattr(base, HYBRIDS.get(config.model_type, _LLAMA)[2])
    return Tower(embedding, tuple(sublayers), norm(last), Sequence())


def check_layers(config: Any) -> None:
    """Raises UserError for a hybrid that has more than attention and MLPs."""
    if config.model_type not in HYBRIDS:
        return
    if {"linear_attention", "mamba"} & set(config.layers_block_type):
        why = "it has Mamba-2 in the place of attention, as a student has"
        raise refuse("decoder", why, model_type=config.model_type)
    for name, plain in _PLAIN.items():
        if (value := getattr(config, name, plain)) != plain:
            raise refuse("decoder", f"known: {plain}", **{name: value})


def _attention(layer: Any, name: str, config: Any, rope: Rope, norm: Callable[[Any], Norm]) -> Attention:
    mine = layer.self_attn
    window = getattr(mine, "sliding_window", None)
    if config.model_type == "mistral":  # which says it of all layers at once
        window = getattr(config, "sliding_window", None)
    return Attention(
        norm=norm(layer.input_layernorm),
        q=affine(mine.q_proj, f"{name}.self_attn.q_proj"),
        k=affine(mine.k_proj, f"{name}.self_attn.k_proj"),
        v=affine(mine.v_proj, f"{name}.self_attn.v_proj"),
        o=affine(mine.o_proj, f"{name}.self_attn.o_proj"),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        causal=True,
        q_norm=_rms_norm(mine.q_norm) if hasattr(mine, "q_norm") else None,
        k_norm=_rms_norm(mine.k_norm) if hasattr(mine, "k_norm") else None,
        rope=rope if getattr(mine, "use_rope", True) else None,  # SmolLM3 has layers without
        softmax_scale=None if mine.scaling == mine.head_dim**-0.5 else float(mine.scaling),
        window=window,
    )


def _mlp(layer: Any, name: str, config: Any, norm: Callable[[Any], Norm]) -> Mlp:
    before, own, _ = HYBRIDS.get(config.model_type, _LLAMA)
    mlp = getattr(layer, own)
    if hasattr(mlp, "input_linear"):  # Granite's, whose gate and up projections are one matrix
        gate, up = (Affine(part, None) for part in mlp.input_linear.weight.chunk(2))
        down = affine(mlp.output_linear, f"{name}.{own}.output_linear")
        return Mlp(norm=norm(getattr(layer, before)), up=up, down=down, act=mlp.activation, gate=gate)
    if not all(hasattr(mlp, part) for part in ("gate_proj", "up_proj", "down_proj")):
        raise refuse(f"{name}.mlp", "only gate, up and down projections are known", kind=type(mlp).__name__)
    return Mlp(
        norm=norm(getattr(layer, before)),
        up=affine(mlp.up_proj, f"{name}.{own}.up_proj"),
        down=affine(mlp.down_proj, f"{name}.{own}.down_proj"),
        act=mlp.act_fn,
        gate=affine(mlp.gate_proj, f"{name}.{own}.gate_proj"),
    )


def _rope(rotary: Any) -> Rope:
    kind = rotary.rope_type
    if kind in _MOVING:
        raise refuse("rotary positions", "their frequencies depend on the text's length", rope_type=kind)
    return Rope(rotary.inv_freq, float(rotary.attention_scaling), kind)


def _rms_norm(module: Any) -> Norm:
    return Norm(module.weight, None, float(module.variance_epsilon), rms=True, weight_last=True)


def _gemma_norm(module: Any) -> Norm:
    weight = module.weight.detach()
    wide = torch.promote_types(
        weight.dtype, torch.float32
    )  # as transformers: in half precision it would round
    return Norm(1 + weight.to(wide), None, float(module.eps), rms=True)


def _gpt2(base: Any) -> Tower:
    config = base.config
    if config.add_cross_attention:
        raise refuse("GPT-2", "cross-attention has no place in it", add_cross_attention=True)
    sublayers: list[Sublayer] = []
    for block in base.h:
        attention, mlp = block.attn, block.mlp
        q, k, v = _thirds(_turned(attention.c_attn))
        sublayers += [
            Attention(
                norm=layer_norm(block.ln_1),
                q=q,
                k=k,
                v=v,
                o=_turned(attention.c_proj),
                heads=config.num_attention_heads,
                causal=True,
                softmax_scale=float(attention.scaling),
            ),
            Mlp(norm=layer_norm(block.ln_2), up=_turned(mlp.c_fc), down=_turned(mlp.c_proj), act=mlp.act),
        ]
    embedding = TokenEmbedding(base.wte.weight, base.wpe.weight)
    return Tower(embedding, tuple(sublayers), layer_norm(base.ln_f), Sequence())


def _turned(module: Any) -> Affine:
    """A Conv1D, whose weight is (in, out)."""
    if type(module).__name__ != "Conv1D":
        raise refuse("GPT-2", "only its own Conv1D is known", kind=type(module).__name__)
    return Affine(module.weight.t(), module.bias)


def _thirds(linear: Affine) -> list[Affine]:
    assert linear.bias is not None, "GPT-2's have biases"
    pairs = zip(linear.weight.chunk(3), linear.bias.chunk(3), strict=True)
    return [Affine(weight, bias) for weight, bias in pairs]


def as_transformers(inputs: Any) -> dict[str, Tensor]:
    """A batch's text as transformers' decoders take it. Positions follow the mask, as in the view."""
    text, mask = inputs["text"], inputs.get("text_mask")
    if mask is None:
        return {"input_ids": text}
    positions = (mask.long().cumsum(dim=1) - 1).clamp_min(0)
    return {"input_ids": text, "attention_mask": mask.long(), "position_ids": positions}
