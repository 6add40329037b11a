"""An image tower that a teacher's view holds as transformers' CLIP or SigLIP: what a LLaVA is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...core.layout import Grid
from ...errors import UserError
from ...views.embeddings import ImageEmbedding
from ...views.placed import skeletons
from ...views.sublayers import Affine, Attention, Mlp, Norm
from ...views.view import Tower, View
from ..reading import activation_name

# timm's names of activations -> transformers'
_HF_ACTS = {"gelu_tanh": "gelu_pytorch_tanh"}
# what CLIP's and SigLIP's attention lacks
_PLAIN = ("q_norm", "k_norm", "scale", "rope", "softmax_scale", "window")


def vision_tower(view: View, who: str) -> tuple[Any, dict[str, Tensor]]:
    """(a configuration of transformers, the weights by its module's names) of a view's tower `image`, but for
    its last block: what a LLaVA reads is the stream before it (arXiv 2304.08485, section 4.1).

    A class token and a norm before the first block make it a CLIP, neither makes it a SigLIP. Raises
    UserError for what neither class holds.
    """
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    tower = view.towers.get("image")
    if tower is None:
        raise UserError(f"{who} has no image tower that a view expresses; choose a ViT, a CLIP or a SigLIP")
    begin = tower.embedding
    assert isinstance(begin, ImageEmbedding) and isinstance(tower.layout, Grid), "pictures come in patches"
    problems = [*_odd_begin(begin, tower.layout), *_odd_blocks(tower)]
    if problems:
        raise UserError(
            f"{who}: its image tower has {problems[0]}, which neither CLIP's nor SigLIP's class in "
            "transformers has, of which a LLaVA is made; choose another"
        )
    classed = bool(tower.layout.special)
    first: Any = tower.sublayers[0]
    up: Any = tower.sublayers[1]
    act = activation_name(up.act, "a LLaVA's tower")
    config = (CLIPVisionConfig if classed else SiglipVisionConfig)(
        hidden_size=tower.width,
        intermediate_size=len(up.up.weight),
        num_hidden_layers=len(_kept(tower)),
        num_attention_heads=first.heads,
        num_channels=begin.weight.shape[1],
        image_size=tower.layout.rows * begin.weight.shape[-1],
        patch_size=begin.weight.shape[-1],
        hidden_act=_HF_ACTS.get(act, act),
        layer_norm_eps=first.norm.eps,
    )
    if not classed:
        config.vision_use_head = False
    return config, dict(_tensors(tower, begin, classed))


def fill(tower: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copies of the weights into transformers' module of that configuration."""
    inner: Any = getattr(tower, "vision_model", tower)  # before transformers 5.2x there is one more module
    inner.load_state_dict({name: tensor.detach().clone() for name, tensor in tensors.items()}, strict=True)


def _odd_begin(begin: ImageEmbedding, grid: Grid) -> Iterator[str]:
    height, width = begin.weight.shape[-2:]
    if grid.rows != grid.columns or height != width:
        yield f"{grid.rows} by {grid.columns} patches of {height} by {width} pixels"
    special = [name for name, _ in grid.special]
    if special not in ([], ["cls"]) or (special and grid.special[0][1] != 0):
        yield f"the tokens {', '.join(special)}"
    elif special and begin.norm is None:
        yield "a class token, but no norm before its first block"
    elif not special and begin.norm is not None:
        yield "a norm before its first block, but no class token"
    if begin.patch_norm is not None or begin.centre:
        yield "a norm of its patches"
    bias = begin.bias
    if special and bias is not None and not bias.is_meta and bool(bias.any()):
        yield "a class token and a bias of its patches"


def _odd_blocks(tower: Tower) -> Iterator[str]:
    first: Any = skeletons(tower.sublayers)[0]
    if tower.kinds != ("attention", "mlp") * len(tower.ends):
        yield "blocks of another kind than attention and then an MLP"
    for sublayer in tower.sublayers:
        if isinstance(sublayer, Attention):
            yield from (f"{name} in attention" for name in _PLAIN if getattr(sublayer, name) is not None)
            if sublayer.kv_heads not in (None, sublayer.heads) or sublayer.heads != first.heads:
                yield "heads of k and v that several of q share"
            if len(sublayer.q.weight) != tower.width:
                yield "heads that are together wider or narrower than its stream"
        elif type(sublayer) is not Mlp or getattr(sublayer, "gate", None) is not None:
            yield "gated MLPs"
        elif sublayer.scale is not None:
            yield "a scale of what its MLPs add"
        if sublayer.norm.rms or sublayer.norm.weight is None or sublayer.norm.eps != first.norm.eps:
            yield "norms that are no LayerNorms of one eps"


def _tensors(tower: Tower, begin: ImageEmbedding, classed: bool) -> Iterator[tuple[str, Tensor]]:
    yield "embeddings.patch_embedding.weight", begin.weight
    if classed:
        yield "embeddings.class_embedding", begin.special[0]
        assert begin.norm is not None, "seen above"
        yield from _norm("pre_layrnorm", begin.norm)  # spelt so there
    else:
        bias = begin.weight.new_zeros(tower.width) if begin.bias is None else begin.bias
        yield "embeddings.patch_embedding.bias", bias
    yield "embeddings.position_embedding.weight", begin.position
    for t, end in enumerate(_kept(tower)):
        attention, mlp = tower.sublayers[end - 1 : end + 1]
        assert isinstance(attention, Attention) and isinstance(mlp, Mlp), "seen above"
        name = f"encoder.layers.{t}."
        yield from _norm(f"{name}layer_norm1", attention.norm)
        for part in ("q", "k", "v"):
            yield from _affine(f"{name}self_attn.{part}_proj", getattr(attention, part))
        yield from _affine(f"{name}self_attn.out_proj", attention.o)
        yield from _norm(f"{name}layer_norm2", mlp.norm)
        yield from _affine(f"{name}mlp.fc1", mlp.up)
        yield from _affine(f"{name}mlp.fc2", mlp.down)
    if tower.norm is not None and tower.norm.weight is not None:
        yield from _norm("post_layernorm", tower.norm)
    else:  # nothing reads it
        yield "post_layernorm.weight", begin.weight.new_ones(tower.width)
        yield "post_layernorm.bias", begin.weight.new_zeros(tower.width)


def _kept(tower: Tower) -> tuple[int, ...]:
    """The sublayers that end a block that is taken."""
    return tower.ends[:-1] or tower.ends


def _norm(name: str, norm: Norm) -> Iterator[tuple[str, Tensor]]:
    assert norm.weight is not None, "seen above"
    yield f"{name}.weight", norm.weight
    yield f"{name}.bias", torch.zeros_like(norm.weight) if norm.bias is None else norm.bias


def _affine(name: str, affine: Affine) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", affine.weight
    zeros = affine.weight.new_zeros(len(affine.weight))
    yield f"{name}.bias", zeros if affine.bias is None else affine.bias
