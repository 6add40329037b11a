"""The canonical view of Hugging Face's CLIP and SigLIP, by their modules' names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..core import layout
from ..views.embeddings import ImageEmbedding, TokenEmbedding
from ..views.heads import AttentionPool, Embedder, EndOfText
from ..views.sublayers import Affine, Attention, Mlp, Sublayer
from ..views.view import Tower, View
from .check import affine, layer_norm
from .teacher import refuse

KINDS = ("CLIPModel", "SiglipModel")
# the eos_token_id of configs that were written before transformers looked for it: the largest number is meant
_NOT_LOOKED_FOR = 2


def dual_encoder_view(model: Any) -> View:
    """The view of a CLIPModel or SiglipModel; its tensors are the model's own but for exp(logit_scale).

    Raises UserError for what the view cannot express.
    """
    kind = type(model).__name__
    if kind not in KINDS:
        raise refuse(kind, "only CLIPModel and SiglipModel are known")
    make = _clip if kind == "CLIPModel" else _siglip
    towers, heads = make(model)
    scalars: dict[str, Tensor] = {"scale": model.logit_scale.detach().exp().reshape(())}
    if getattr(model, "logit_bias", None) is not None:
        scalars["bias"] = model.logit_bias.reshape(())
    return View(towers, heads, scalars)


def blocks_of(model: Any) -> dict[str, Sequence[nn.Module]]:
    """By tower, the modules that each return a residual stream."""
    return {
        "image": list(model.vision_model.encoder.layers),
        "text": list(model.text_model.encoder.layers),
    }


def image_tower(image: Any) -> Tower:
    """Of a CLIP or SigLIP image model, with or without a text tower beside it, or a last norm."""
    embeddings = image.embeddings
    weight = embeddings.patch_embedding.weight
    classed = hasattr(embeddings, "class_embedding")
    embedding = ImageEmbedding(
        weight=weight,
        bias=embeddings.patch_embedding.bias,
        special=embeddings.class_embedding[None] if classed else weight.new_zeros(0, weight.shape[0]),
        position=embeddings.position_embedding.weight,
        norm=layer_norm(image.pre_layrnorm) if classed else None,
    )
    return _image_tower(image, embedding, special=(("cls", 0),) if classed else ())


def _clip(model: Any) -> tuple[dict[str, Tower], dict[str, Embedder]]:
    image, text = model.vision_model, model.text_model
    eos = text.eos_token_id
    towers = {"image": image_tower(image), "text": _text_tower(text, causal=True)}
    heads = {
        "image": Embedder("cls", affine(model.visual_projection, "visual_projection")),
        "text": Embedder(
            EndOfText(None if eos == _NOT_LOOKED_FOR else eos),
            affine(model.text_projection, "text_projection"),
        ),
    }
    return towers, heads


def _siglip(model: Any) -> tuple[dict[str, Tower], dict[str, Embedder]]:
    image, text = model.vision_model, model.text_model
    if getattr(image, "head", None) is None:
        raise refuse("image tower", "it has no pooling head", vision_use_head=False)
    towers = {"image": image_tower(image), "text": _text_tower(text, causal=False)}
    heads = {
        "image": Embedder(_attention_pool(image.head), None),
        "text": Embedder("last", affine(text.head, "text_model.head")),
    }
    return towers, heads


def _image_tower(image: Any, embedding: ImageEmbedding, special: tuple[tuple[str, int], ...] = ()) -> Tower:
    side = image.embeddings.image_size // image.embeddings.patch_size
    grid = layout.Grid(side, side, special=special)
    sublayers = _blocks(image.encoder.layers, "vision_model", causal=False)
    last = getattr(image, "post_layernorm", None)  # our students' towers end before it
    return Tower(embedding, sublayers, None if last is None else layer_norm(last), grid)


def _text_tower(text: Any, *, causal: bool) -> Tower:
    embeddings = text.embeddings
    embedding = TokenEmbedding(
        embeddings.token_embedding.weight, embeddings.position_embedding.weight, absolute=True
    )
    sublayers = _blocks(text.encoder.layers, "text_model", causal=causal)
    return Tower(embedding, sublayers, layer_norm(text.final_layer_norm), layout.Sequence())


def _blocks(layers: Any, tower: str, *, causal: bool) -> tuple[Sublayer, ...]:
    found: list[Sublayer] = []
    for index, layer in enumerate(layers):
        name, attn = f"{tower}.encoder.layers.{index}", layer.self_attn
        q, k, v, o = (
            affine(getattr(attn, part), f"{name}.self_attn.{part}")
            for part in ("q_proj", "k_proj", "v_proj", "out_proj")
        )
        before = layer_norm(layer.layer_norm1)
        found.append(Attention(norm=before, q=q, k=k, v=v, o=o, heads=attn.num_heads, causal=causal))
        up, down = (affine(getattr(layer.mlp, part), f"{name}.mlp.{part}") for part in ("fc1", "fc2"))
        found.append(Mlp(norm=layer_norm(layer.layer_norm2), up=up, down=down, act=layer.mlp.activation_fn))
    return tuple(found)


def _attention_pool(head: Any) -> AttentionPool:
    attn = head.attention
    if not isinstance(attn, nn.MultiheadAttention) or attn.in_proj_weight is None:
        raise refuse("vision_model.head.attention", "only plain attention is known", kind=type(attn).__name__)
    weights, biases = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
    q, k, v = (Affine(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return AttentionPool(
        latent=head.probe[0],
        q=q,
        k=k,
        v=v,
        o=affine(attn.out_proj, "vision_model.head.attention.out_proj"),
        heads=attn.num_heads,
        norm=layer_norm(head.layernorm),
        up=affine(head.mlp.fc1, "vision_model.head.mlp.fc1"),
        down=affine(head.mlp.fc2, "vision_model.head.mlp.fc2"),
        act=head.mlp.activation_fn,
    )
