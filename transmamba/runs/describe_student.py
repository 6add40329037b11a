"""A student's towers in words and numbers, as `teachers.describe` has a teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..students.hybrid_lm.architectures import head_size_of, normalises
from ..students.hybrid_lm.mlps import experts_shape
from ..students.hybrid_lm.model import HybridStudent
from ..students.llava.model import LlavaStudent
from ..students.ssd_vit.model import SSDVisionTransformer
from ..students.text_mamba import TextMamba
from ..students.vim.model import VisionMamba
from ..teachers.describe import runs_of, tower_in_words
from ..teachers.open_clip_text import only_runs, text_view
from .describe_llava import counted, llava_towers

KEPT, WINDOW = "kept", "window"
# timm's names of them, and those of a teacher's
_POOLS = {"token": "cls", "avg": "mean", "map": "attention", "": "none"}


def student_towers(model: Any) -> dict[str, dict[str, Any]]:
    """By stream, the towers of one of our students, of a LLaVA's both, or of an open_clip model whose image
    tower is ours. Empty for any other model.

    What a teacher's have, and `kind`: vim, ssd_vit, vit where every block has attention, or kept; of a text
    mamba2, or kept; of a decoder hybrid, mamba2 where no block has attention, window where some have
    attention to the last tokens alone, or kept. `parameters` are the tower's.
    """
    if isinstance(model, LlavaStudent):
        return llava_towers(model, _image, _hybrid)
    if isinstance(model, HybridStudent):
        return {"decoder": _counted(model, _hybrid(model))}
    if _is_image(model):
        classes = {"kind": "classifier", "classes": model.num_classes, "pool": [_POOLS[model.global_pool]]}
        return {"image": _counted(model, _image(model, classes if model.num_classes else None))}
    visual = getattr(model, "visual", None)
    if not _is_image(getattr(visual, "trunk", None)):
        return {}
    return {"image": _counted(visual, _embedding_image(visual)), "text": _counted(model.text, _text(model))}


def converted(towers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of those that have Mamba in place of attention."""
    return [name for name, tower in towers.items() if tower["kind"] not in (KEPT, WINDOW, "vit")]


def _is_image(module: Any) -> bool:
    return isinstance(module, VisionMamba | SSDVisionTransformer)


def _counted(module: Any, tower: dict[str, Any]) -> dict[str, Any]:
    return {**tower, "parameters": counted(module)}


def _embedding_image(visual: Any) -> dict[str, Any]:
    projection = getattr(visual.head, "proj", None)
    size = None if projection is None else projection.weight.shape[0]
    pool = _POOLS[visual.trunk.global_pool]
    return _image(visual.trunk, {"kind": "embedding", "size": size, "pool": [pool]})


def _image(trunk: Any, head: Mapping[str, Any] | None) -> dict[str, Any]:
    patches, layout = trunk.patch_embed, trunk.layout
    if isinstance(trunk, VisionMamba):
        kind, last = "vim", trunk.norm_f
        blocks = [[_vim(layer)] for layer in trunk.layers]
    else:
        kind, last = "vit" if len(trunk.attention_layers) == len(trunk.blocks) else "ssd_vit", trunk.norm
        blocks = [
            [_mixer(block.attn, block.norm1, block.ls1), _mlp(block, block.ls2)] for block in trunk.blocks
        ]
    return {
        "kind": kind,
        "reads": "image",
        "width": trunk.width,
        "embedding": {
            "kind": "patches",
            "patch": list(patches.patch_size),
            "channels": patches.proj.weight.shape[1],
            "grid": list(layout.grid),
            "special": [name for name, _ in layout.special],
            "positions": "none" if trunk.pos_embed is None else "learnt",
            **({"frames": trunk.num_frames} if trunk.num_frames > 1 else {}),
            "norm": _norm(trunk.norm_pre),
        },
        "blocks": len(blocks),
        "sublayers": runs_of(blocks),
        "norm": _norm(last),
        "head": head,
    }


def _text(model: Any) -> dict[str, Any]:
    text = model.text
    if isinstance(text, TextMamba):
        return {"kind": "mamba2", **_text_mamba(text)}
    if only_runs(text):
        return {"kind": KEPT, "reads": "text", "opaque": type(text).__name__}
    return {"kind": KEPT, **tower_in_words(*text_view(text))}


def _text_mamba(text: TextMamba) -> dict[str, Any]:
    shape = text.shape
    pool = "last" if shape.pool_type == "last" else "end of text"
    size = shape.embed_dim if shape.proj_type == "linear" else None
    blocks: list[Any] = list(text.blocks)
    return {
        "reads": "text",
        "width": shape.width,
        "embedding": {
            "kind": "words",
            "vocabulary": shape.vocab_size,
            "positions": f"learnt, {shape.context_length}",
        },
        "blocks": len(blocks),
        "sublayers": runs_of(
            [[_mixer(each.attn, each.norm1, each.ls1), _mlp(each, each.ls2)] for each in blocks]
        ),
        "norm": _norm(text.norm),
        "head": {"kind": "embedding", "size": size, "pool": [pool]},
    }


def _hybrid(model: HybridStudent) -> dict[str, Any]:
    config, count = model.config, model.num_layers
    blocks = [_hybrid_layer(model, k) for k in range(count)]
    scan = "mamba2" if "linear_attention" in model.kinds or model.attention_layers else "mamba"
    kind = {0: scan, count: KEPT}.get(len(model.attention_layers), "hybrid")
    return {
        "kind": WINDOW if "window_attention" in model.kinds else kind,
        "reads": "text",
        "width": model.width,
        "embedding": {"kind": "words", "vocabulary": model.vocabulary, "positions": "none"},
        "blocks": count,
        "sublayers": runs_of(blocks),
        "norm": f"RMSNorm {config.rms_norm_eps:g}",
        "head": {
            "kind": "next word",
            "vocabulary": model.vocabulary,
            "tied": config.tie_word_embeddings,
        },
    }


def _hybrid_layer(model: HybridStudent, k: int) -> list[dict[str, Any]]:
    config, layer = model.config, model.layer(k)
    norm = f"RMSNorm {config.rms_norm_eps:g}"
    qk_norm = norm if normalises(config) else "none"
    mixer: dict[str, Any]
    if layer.mamba1:
        mixer = {"norm": norm, **_mamba(layer.mamba)}
    elif not layer.scans:
        mixer = {
            "kind": "attention",
            "norm": norm,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_size": head_size_of(config),
            "rope": config.rope_parameters.get("rope_type", "default"),
            "qk_norm": qk_norm,
        }
        if layer.kind != "full_attention":
            mixer |= {"window": config.window, "sinks": config.sinks}
        if layer.kind == "window_mamba":
            mixer |= {"kind": "window_mamba2", "state": head_size_of(config), "scan": config.scan}
    else:
        mixer = {
            "kind": "mamba2",
            "norm": norm,
            "heads": config.mamba_n_heads,
            "head_size": config.mamba_d_head,
            "state": config.mamba_d_state,
            "convolution": config.mamba_d_conv,
            "directions": 1,
            "qk_norm": qk_norm,
        }
    return [mixer, *_behind(config, layer, norm)]


def _mamba(mixer: Any) -> dict[str, Any]:
    taps = mixer.conv1d.weight.shape[-1]
    found = {"kind": "mamba", "channels": mixer.inner, "state": mixer.d_state, "convolution": taps}
    within = {"experts_within": list(mixer.switched)} if mixer.switched else {}
    return {**found, "directions": 1, **within}


def _behind(config: Any, layer: Any, norm: str) -> list[dict[str, Any]]:
    """What a hybrid's layer has behind its mixer: an MLP, experts, or nothing."""
    gated = getattr(config, "mlp", "swiglu") == "swiglu"
    found = {
        "norm": norm,
        "neurons": layer.neurons,
        "gated": gated,
        "activation": "silu" if gated else "relu",
    }
    if layer.routes:
        shape = experts_shape(config)
        weights = "sum of 1" if shape.normalised else "probability"
        routing = {"experts": shape.count, "each": shape.each, "weights": weights, "scale": shape.scale}
        return [{"kind": "experts", **found, **routing}]
    return [] if getattr(config, "mlp", "swiglu") == "none" else [{"kind": "mlp", **found}]


def _vim(layer: Any) -> dict[str, Any]:
    mixer = layer.mixer
    return {
        "kind": "mamba",
        "norm": _norm(layer.norm),
        "directions": 2,
        "channels": mixer.inner,
        "state": mixer.d_state,
        "convolution": mixer.conv1d.weight.shape[-1],
        "gate_bias": mixer.gate_bias is not None,
        "biases": "all" if mixer.in_proj.bias is not None else "none",
    }


def _mixer(mixer: Any, norm: nn.Module, scale: nn.Module) -> dict[str, Any]:
    """Of Mamba-2 in the place of attention, or attention that a block has kept."""
    ours = hasattr(mixer, "decays")
    found = {
        "kind": "mamba2" if ours else "attention",
        "norm": _norm(norm),
        "layer_scale": not isinstance(scale, nn.Identity),
        "heads": mixer.num_heads,
        "head_size": mixer.head_dim,
    }
    return {**found, "directions": len(mixer.decays)} if ours else found


def _mlp(block: Any, scale: nn.Module) -> dict[str, Any]:
    mlp = block.mlp
    return {
        "kind": "mlp",
        "norm": _norm(block.norm2),
        "layer_scale": not isinstance(scale, nn.Identity),
        "neurons": mlp.fc2.weight.shape[1],
        "gated": hasattr(mlp, "fc1_g"),
        "activation": type(mlp.act).__name__,
    }


def _norm(module: Any) -> str:
    if isinstance(module, nn.Identity):
        return "none"
    return f"{'RMSNorm' if 'rms' in type(module).__name__.lower() else 'LayerNorm'} {module.eps:g}"
