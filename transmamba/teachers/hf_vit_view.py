"""The canonical view of Hugging Face's ViT, DeiT and DINOv2, by their modules' names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.layout import Grid
from ..views.embeddings import ImageEmbedding
from ..views.heads import Classifier, Head
from ..views.sublayers import Affine, Attention, Mlp, Norm
from ..views.view import Tower, View
from .check import plain_linear
from .teacher import refuse

# class -> the attribute that holds its backbone; empty for a backbone
VIEWS = {
    "ViTForImageClassification": "vit",
    "ViTForMaskedImageModeling": "vit",
    "ViTModel": "",
    "DeiTForImageClassification": "deit",
    "DeiTForImageClassificationWithTeacher": "deit",
    "DeiTForMaskedImageModeling": "deit",
    "DeiTModel": "",
    "Dinov2ForImageClassification": "dinov2",
    "Dinov2Model": "",
}


def hugging_face_view(model: Any, size: tuple[int, ...] | None = None) -> View:
    """The view for pictures of `size` (the model's own where left out); its tensors are the model's own but
    for positions of another size and DINOv2's head.

    Raises UserError for what the view cannot express.
    """
    kind = type(model).__name__
    if kind not in VIEWS:
        raise refuse(kind, "only ViT, DeiT and DINOv2 are known")
    base = backbone_of(model)
    sublayers = tuple(
        sublayer for i, layer in enumerate(layers_of(model)) for sublayer in _block(layer, f"layers.{i}")
    )
    embedding, layout = _embedding(base.embeddings, size)
    head = _head(model, base.layernorm.weight.shape[0])
    tower = Tower(embedding, sublayers, layer_norm(base.layernorm), layout)
    return View({"image": tower}, {} if head is None else {"image": head})


def backbone_of(model: Any) -> Any:
    name = VIEWS[type(model).__name__]
    return getattr(model, name) if name else model


def layers_of(model: Any) -> Any:
    base = backbone_of(model)
    return base.encoder.layer if hasattr(base, "encoder") else base.layers


def has_head(model: Any) -> bool:
    """Whether it classifies: a backbone does not, nor what paints masked patches."""
    classifier = getattr(model, "classifier", None)
    return hasattr(model, "cls_classifier") or not (classifier is None or isinstance(classifier, nn.Identity))


def _head(model: Any, width: int) -> Head | None:
    """Its classifier; None for a backbone, and for one whose head paints masked patches."""
    if hasattr(model, "cls_classifier"):
        names = {"cls": "cls_classifier", "dist": "distillation_classifier"}
        return Classifier(
            tuple((token, _affine(getattr(model, name), name)) for token, name in names.items())
        )
    if not has_head(model):
        return None
    whole = _affine(model.classifier, "classifier")
    if whole.weight.shape[1] == width:
        return Classifier((("cls", whole),))
    # DINOv2 reads the class token beside the mean patch: the mean of two readouts of twice the weight
    cls, mean = whole.weight.chunk(2, dim=1)
    return Classifier((("cls", Affine(2 * cls, whole.bias)), ("mean", Affine(2 * mean, whole.bias))))


def _affine(module: Any, name: str) -> Affine:
    linear = plain_linear(module, name)
    return Affine(linear.weight, linear.bias)


def layer_norm(module: nn.LayerNorm) -> Norm:
    return Norm(module.weight, module.bias, module.eps)


def _block(layer: Any, name: str) -> tuple[Attention, Mlp]:
    attention, before, after = layer.attention, _first_norm(layer, 1), _first_norm(layer, 2)
    if hasattr(attention, "q_proj"):
        q, k, v, o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        heads = attention.num_attention_heads
    else:  # the module tree before transformers 5.2x
        inner = attention.attention
        q, k, v, o = inner.query, inner.key, inner.value, attention.output.dense
        heads = inner.num_attention_heads
    up, down, act = _mlp(layer, name)
    return (
        Attention(
            norm=layer_norm(before),
            q=_affine(q, f"{name}.q"),
            k=_affine(k, f"{name}.k"),
            v=_affine(v, f"{name}.v"),
            o=_affine(o, f"{name}.o"),
            heads=heads,
            scale=_scale(layer, 1),
        ),
        Mlp(
            norm=layer_norm(after),
            up=_affine(up, f"{name}.up"),
            down=_affine(down, f"{name}.down"),
            act=act,
            scale=_scale(layer, 2),
        ),
    )


def _first_norm(layer: Any, number: int) -> Any:
    names = {1: ("norm1", "layernorm_before"), 2: ("norm2", "layernorm_after")}[number]
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def _mlp(layer: Any, name: str) -> tuple[Any, Any, Any]:
    """The two linears and the activation between them."""
    mlp = getattr(layer, "mlp", None)
    if mlp is None:
        return layer.intermediate.dense, layer.output.dense, layer.intermediate.intermediate_act_fn
    if not hasattr(mlp, "fc1"):
        raise refuse(f"{name}.mlp", "only the plain two-layer MLP is known", kind=type(mlp).__name__)
    return mlp.fc1, mlp.fc2, mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.activation


def _scale(layer: Any, number: int) -> Tensor | None:
    """DINOv2's LayerScale."""
    scale = getattr(layer, f"layer_scale{number}", None)
    return None if scale is None else scale.lambda1


def _embedding(embeddings: Any, size: tuple[int, ...] | None) -> tuple[ImageEmbedding, Grid]:
    projection = embeddings.patch_embeddings.projection
    special = [("cls", embeddings.cls_token[0])]
    if getattr(embeddings, "distillation_token", None) is not None:
        special.append(("dist", embeddings.distillation_token[0]))
    own, patch = embeddings.patch_embeddings.image_size, embeddings.patch_embeddings.patch_size
    height, width = size or tuple(own)
    names = tuple((name, i) for i, (name, _) in enumerate(special))
    layout = Grid(height // patch[0], width // patch[1], special=names)
    position = embeddings.position_embeddings
    if (height, width) != tuple(own):
        # the model resizes them for each picture; here once, by its own code
        tokens = position.new_zeros(1, layout.length, position.shape[-1])
        with torch.no_grad():
            position = embeddings.interpolate_pos_encoding(tokens, height, width)
    embedding = ImageEmbedding(
        weight=projection.weight,
        bias=projection.bias,
        special=torch.cat([token for _, token in special]),
        position=position[0],
    )
    return embedding, layout
