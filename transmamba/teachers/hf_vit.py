"""Hugging Face ViTForImageClassification and DeiTForImageClassification(WithTeacher) as teachers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config.registry import TEACHERS
from ..core.layout import Grid
from ..core.preprocessing import Preprocessing
from ..ecosystems.folders import model_folder, read_model_config
from ..ecosystems.transformers import MODEL_TYPES, hugging_face_preprocessing, load_hugging_face
from ..views.embeddings import ImageEmbedding
from ..views.heads import Classifier
from ..views.sublayers import Affine, Attention, Mlp, Norm
from ..views.view import Tower, View
from .teacher import Teacher, refuse


@TEACHERS.register("hf_vit")
@dataclass(frozen=True, kw_only=True)
class HuggingFaceVit:
    """A Hugging Face ViT or DeiT classifier. Pickled weights are refused.

    model: an id, or a folder with config.json and safetensors
    revision: branch, tag or commit on the Hub
    """

    model: str
    revision: str | None = None

    def build(self) -> Teacher:
        model: Any = load_hugging_face(self.model, self.revision)
        return _teacher(
            model, self.model, hugging_face_preprocessing(model.config, self.model, self.revision)
        )

    @staticmethod
    def recognise(source: str) -> HuggingFaceVit | None:
        if model_folder(source):
            known = read_model_config(source).get("model_type") in MODEL_TYPES
            return HuggingFaceVit(model=str(model_folder(source))) if known else None
        another = source.startswith((".", "/", "~", "timm/", "hf-hub:"))
        looks_like_an_id = source.count("/") == 1 and not another
        return HuggingFaceVit(model=source) if looks_like_an_id and not Path(source).exists() else None

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        return type(module).__name__ in _VIEWS

    @staticmethod
    def adapt(module: nn.Module, *, source: str) -> Teacher:
        model: Any = module
        came_from = getattr(model, "name_or_path", "") or getattr(model.config, "_name_or_path", "")
        # a module that the user holds needs no network: only a folder is looked at
        folder = came_from if came_from and Path(came_from).is_dir() else ""
        return _teacher(model, source, hugging_face_preprocessing(model.config, folder))


def _teacher(model: Any, source: str, preprocessing: Preprocessing) -> Teacher:
    return Teacher(
        hugging_face_view(model),
        source=source,
        preprocessing=preprocessing,
        num_params=sum(p.numel() for p in model.parameters()),
    )


def hugging_face_view(model: Any) -> View:
    """The canonical view of a ViT/DeiT classifier; its tensors are the model's own, no copies."""
    if type(model).__name__ not in _VIEWS:
        raise refuse(type(model).__name__, "only the ViT and DeiT classifiers are known")
    base = model.vit if hasattr(model, "vit") else model.deit
    sublayers = tuple(sublayer for layer in _layers(base) for sublayer in _block(layer))
    if type(model).__name__ == "DeiTForImageClassificationWithTeacher":
        readouts = [("cls", _affine(model.cls_classifier)), ("dist", _affine(model.distillation_classifier))]
    else:
        readouts = [("cls", _affine(model.classifier))]
    embedding, layout = _embedding(base.embeddings)
    tower = Tower(embedding, sublayers, _norm(base.layernorm), layout)
    return View({"image": tower}, {"image": Classifier(tuple(readouts))})


_VIEWS = ("ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher")


def _layers(base: Any) -> Any:
    return base.encoder.layer if hasattr(base, "encoder") else base.layers


def _affine(linear: Any) -> Affine:
    if not isinstance(linear, nn.Linear):
        raise refuse("head", "the model has no linear classifier", kind=type(linear).__name__)
    return Affine(linear.weight, linear.bias)


def _norm(module: nn.LayerNorm) -> Norm:
    return Norm(module.weight, module.bias, module.eps)


def _block(layer: Any) -> tuple[Attention, Mlp]:
    attention = layer.attention
    if hasattr(attention, "q_proj"):
        q, k, v, o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        heads = attention.num_attention_heads
        up, down, act = layer.mlp.fc1, layer.mlp.fc2, layer.mlp.activation_fn
    else:  # the module tree before transformers 5.2x
        inner = attention.attention
        q, k, v, o = inner.query, inner.key, inner.value, attention.output.dense
        heads = inner.num_attention_heads
        up, down, act = layer.intermediate.dense, layer.output.dense, layer.intermediate.intermediate_act_fn
    return (
        Attention(
            norm=_norm(layer.layernorm_before),
            q=_affine(q),
            k=_affine(k),
            v=_affine(v),
            o=_affine(o),
            heads=heads,
        ),
        Mlp(norm=_norm(layer.layernorm_after), up=_affine(up), down=_affine(down), act=act),
    )


def _embedding(embeddings: Any) -> tuple[ImageEmbedding, Grid]:
    projection = embeddings.patch_embeddings.projection
    special = [("cls", embeddings.cls_token[0])]
    if getattr(embeddings, "distillation_token", None) is not None:
        special.append(("dist", embeddings.distillation_token[0]))
    image, patch = embeddings.patch_embeddings.image_size, embeddings.patch_embeddings.patch_size
    names = tuple((name, i) for i, (name, _) in enumerate(special))
    layout = Grid(image[0] // patch[0], image[1] // patch[1], special=names)
    embedding = ImageEmbedding(
        weight=projection.weight,
        bias=projection.bias,
        special=torch.cat([token for _, token in special]),
        position=embeddings.position_embeddings[0],
    )
    return embedding, layout
