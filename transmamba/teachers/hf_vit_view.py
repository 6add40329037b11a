"""The canonical view of Hugging Face's ViT, DeiT and DINOv2 (with registers or without), by their modules'
names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.layout import Grid
from ..views.embeddings import ImageEmbedding
from ..views.heads import Classifier, Head
from ..views.sublayers import Affine, Attention, Mlp, Norm
from ..views.view import Tower, View
from .check import affine, layer_norm, plain_linear
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
    "Dinov2WithRegistersForImageClassification": "dinov2_with_registers",
    "Dinov2WithRegistersModel": "",
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
        return Classifier(tuple((token, affine(getattr(model, name), name)) for token, name in names.items()))
    if not has_head(model):
        return None
    whole = affine(model.classifier, "classifier")
    if whole.weight.shape[1] == width:
        return Classifier((("cls", whole),))
    # DINOv2 reads the class token beside the mean patch: the mean of two readouts of twice the weight
    cls, mean = whole.weight.chunk(2, dim=1)
    return Classifier((("cls", Affine(2 * cls, whole.bias)), ("mean", Affine(2 * mean, whole.bias))))


def _block(layer: Any, name: str) -> tuple[Attention, Mlp]:
    attention, before, after = layer.attention, _first_norm(layer, 1), _first_norm(layer, 2)
    if hasattr(attention, "q_proj"):
        q, k, v, o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        heads = attention.num_attention_heads
    else:  # the module tree before transformers 5.2x
        inner = attention.attention
        q, k, v, o = inner.query, inner.key, inner.value, attention.output.dense
        heads = inner.num_attention_heads
    return (
        Attention(
            norm=layer_norm(before),
            q=affine(q, f"{name}.q"),
            k=affine(k, f"{name}.k"),
            v=affine(v, f"{name}.v"),
            o=affine(o, f"{name}.o"),
            heads=heads,
            scale=_scale(layer, 1),
        ),
        _mlp(layer, layer_norm(after), name),
    )


def _first_norm(layer: Any, number: int) -> Any:
    names = {1: ("norm1", "layernorm_before"), 2: ("norm2", "layernorm_after")}[number]
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def _mlp(layer: Any, norm: Norm, name: str) -> Mlp:
    """Two linears and the activation between them, or DINOv2's three with a gate."""
    mlp, gate = getattr(layer, "mlp", None), None
    if mlp is None:
        up, down, act = layer.intermediate.dense, layer.output.dense, layer.intermediate.intermediate_act_fn
    elif hasattr(mlp, "fc1"):
        up, down = mlp.fc1, mlp.fc2
        act = mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.activation
    elif hasattr(mlp, "gate_proj"):
        up, down, act, gate = mlp.up_proj, mlp.down_proj, mlp.act_fn, affine(mlp.gate_proj, f"{name}.gate")
    elif hasattr(mlp, "weights_in"):  # the same before transformers 5.2x: gate and up in one
        inner = plain_linear(mlp.weights_in, f"{name}.weights_in")
        biases: Any = (None, None) if inner.bias is None else inner.bias.chunk(2)
        gate, packed = map(Affine, inner.weight.chunk(2), biases)
        down = affine(mlp.weights_out, f"{name}.weights_out")
        return Mlp(norm, packed, down, act=F.silu, scale=_scale(layer, 2), gate=gate)
    else:
        raise refuse(
            f"{name}.mlp", "only two linears, or three with a gate, are known", kind=type(mlp).__name__
        )
    up, down = affine(up, f"{name}.up"), affine(down, f"{name}.down")
    return Mlp(norm, up, down, act=act, scale=_scale(layer, 2), gate=gate)


def _scale(layer: Any, number: int) -> Tensor | None:
    """DINOv2's LayerScale."""
    scale = getattr(layer, f"layer_scale{number}", None)
    return None if scale is None else scale.lambda1


def _embedding(embeddings: Any, size: tuple[int, ...] | None) -> tuple[ImageEmbedding, Grid]:
    projection = embeddings.patch_embeddings.projection
    special = [("cls", embeddings.cls_token[0])]
    if getattr(embeddings, "distillation_token", None) is not None:
        special.append(("dist", embeddings.distillation_token[0]))
    position = _positions(embeddings, len(special), size)
    if getattr(embeddings, "register_tokens", None) is not None:
        registers = embeddings.register_tokens[0]
        special += [(f"reg{i}", row[None]) for i, row in enumerate(registers)]
        # they come after the class token, and have no positions
        position = torch.cat([position[:1], torch.zeros_like(registers), position[1:]])
    height, width = _grid(embeddings, size)
    names = tuple((name, i) for i, (name, _) in enumerate(special))
    embedding = ImageEmbedding(
        weight=projection.weight,
        bias=projection.bias,
        special=torch.cat([token for _, token in special]),
        position=position,
    )
    return embedding, Grid(height, width, special=names)


def _grid(embeddings: Any, size: tuple[int, ...] | None) -> tuple[int, int]:
    """Rows and columns of patches."""
    height, width = size or tuple(embeddings.patch_embeddings.image_size)
    patch = embeddings.patch_embeddings.patch_size
    return height // patch[0], width // patch[1]


def _positions(embeddings: Any, special: int, size: tuple[int, ...] | None) -> Tensor:
    """(S + N, D) of `special` tokens and the patches of a picture of `size`."""
    position: Tensor = embeddings.position_embeddings
    if size is not None and size != tuple(embeddings.patch_embeddings.image_size):
        # the model resizes them for each picture; here once, by its own code
        rows, columns = _grid(embeddings, size)
        tokens = position.new_zeros(1, special + rows * columns, position.shape[-1])
        with torch.no_grad():
            position = embeddings.interpolate_pos_encoding(tokens, *size)
    return position[0]
