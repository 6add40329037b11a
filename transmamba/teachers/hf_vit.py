"""Hugging Face ViTForImageClassification and DeiTForImageClassification(WithTeacher) as teachers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config.registry import TEACHERS
from ..core.output import TokenLayout
from ..core.preprocessing import Preprocessing
from ..ecosystems.folders import model_folder, read_model_config
from ..errors import UserError
from ..views.view import Affine, Attention, Block, ImageEmbedding, Mlp, Norm, View
from .teacher import Teacher, refuse

_MODEL_TYPES = ("vit", "deit")
_PROCESSOR = "preprocessor_config.json"
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
# What the published checkpoints of each were trained with, for a model that comes without a processor.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5), "resample": 2},
    "deit": {
        "image_mean": (0.485, 0.456, 0.406),
        "image_std": (0.229, 0.224, 0.225),
        "resample": 3,
        "do_center_crop": True,
        "size": 256,
        "crop_size": 224,
    },
}


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
            known = read_model_config(source).get("model_type") in _MODEL_TYPES
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


def load_hugging_face(name: str, revision: str | None = None, num_classes: int | None = None) -> nn.Module:
    """AutoModelForImageClassification of a ViT or DeiT, from safetensors only; with `num_classes` its head is
    made anew where that differs. Raises UserError in one line."""
    from transformers import (
        AutoConfig,
        AutoModelForImageClassification,
        DeiTForImageClassificationWithTeacher,
    )

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        if config.model_type not in _MODEL_TYPES:
            raise refuse(f"{name!r}", "only ViT and DeiT classifiers are known", model_type=config.model_type)
        # the distilled DeiT has two heads; AutoModel would drop one of them
        with_teacher = "DeiTForImageClassificationWithTeacher" in (config.architectures or [])
        loader: Any = (
            DeiTForImageClassificationWithTeacher if with_teacher else AutoModelForImageClassification
        )
        head = {} if num_classes is None else {"num_labels": num_classes, "ignore_mismatched_sizes": True}
        return loader.from_pretrained(name, revision=revision, use_safetensors=True, **head).eval()
    except UserError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"Hugging Face model {name!r} could not be loaded: {first}") from error


def hugging_face_preprocessing(config: Any, source: str, revision: str | None = None) -> Preprocessing:
    """Mean, std, size, crop and resampling of the image processor in `source` (a folder or an id); those of
    the model's kind without one. Raises UserError for a processor that cannot be read."""
    defaults = _DEFAULTS.get(config.model_type, _DEFAULTS["vit"])
    processor = _processor_config(source, revision or getattr(config, "_commit_hash", None)) or defaults
    sides = config.image_size
    height, width = (sides, sides) if isinstance(sides, int) else sides
    cropped = bool(processor.get("do_center_crop"))
    try:
        crop_pct = 1.0
        if cropped:
            crop_pct = _side(processor.get("crop_size"), height) / _side(processor.get("size"), height)
        return Preprocessing.from_pretrained_cfg(
            {
                "input_size": (config.num_channels, height, width),
                "mean": processor.get("image_mean") or defaults["image_mean"],
                "std": processor.get("image_std") or defaults["image_std"],
                "interpolation": _RESAMPLE.get(processor.get("resample", defaults["resample"]), "bilinear"),
                "crop_pct": crop_pct,
                # ViT's processor squashes the whole picture to a square; DeiT's crops its middle
                "crop_mode": "center" if cropped else "squash",
            }
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{source}: its {_PROCESSOR} cannot be understood: {error}") from error


def _side(size: Any, default: int) -> int:
    """Pixels of 256, [256, 256], {"height": 256, "width": 256} or {"shortest_edge": 256}: all are in use."""
    if isinstance(size, dict):
        return int(size.get("shortest_edge") or size.get("height") or default)
    if isinstance(size, list | tuple):
        return int(size[0]) if size else default
    return default if size is None else int(size)


def _processor_config(source: str, revision: str | None) -> dict[str, Any]:
    """preprocessor_config.json of a folder or an id; empty where there is none."""
    folder = Path(source)
    try:
        if source and folder.is_dir():
            found: str | Path | None = folder / _PROCESSOR if (folder / _PROCESSOR).is_file() else None
        elif "/" in source:
            from transformers.utils.hub import cached_file

            missing_is_fine: Any = {"_raise_exceptions_for_missing_entries": False}
            found = cached_file(source, _PROCESSOR, revision=revision, **missing_is_fine)
        else:
            found = None
        values = json.loads(Path(found).read_text(encoding="utf-8")) if found is not None else {}
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: its {_PROCESSOR} cannot be read: {first}") from error
    if not isinstance(values, dict):
        raise UserError(f"{source}: its {_PROCESSOR} holds no JSON object but a {type(values).__name__}")
    return values


def hugging_face_view(model: Any) -> View:
    """The canonical view of a ViT/DeiT classifier; its tensors are the model's own, no copies."""
    if type(model).__name__ not in _VIEWS:
        raise refuse(type(model).__name__, "only the ViT and DeiT classifiers are known")
    base = model.vit if hasattr(model, "vit") else model.deit
    blocks = tuple(_block(layer) for layer in _layers(base))
    if type(model).__name__ == "DeiTForImageClassificationWithTeacher":
        heads = (("cls", _affine(model.cls_classifier)), ("dist", _affine(model.distillation_classifier)))
    else:
        heads = (("cls", _affine(model.classifier)),)  # type: ignore[assignment]
    embedding, layout = _embedding(base.embeddings)
    return View(embedding=embedding, blocks=blocks, norm=_norm(base.layernorm), heads=heads, layout=layout)


_VIEWS = ("ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher")


def _layers(base: Any) -> Any:
    return base.encoder.layer if hasattr(base, "encoder") else base.layers


def _affine(linear: Any) -> Affine:
    if not isinstance(linear, nn.Linear):
        raise refuse("head", "the model has no linear classifier", kind=type(linear).__name__)
    return Affine(linear.weight, linear.bias)


def _norm(module: nn.LayerNorm) -> Norm:
    return Norm(module.weight, module.bias, module.eps)


def _block(layer: Any) -> Block:
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
    return Block(
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


def _embedding(embeddings: Any) -> tuple[ImageEmbedding, TokenLayout]:
    projection = embeddings.patch_embeddings.projection
    special = [("cls", embeddings.cls_token[0])]
    if getattr(embeddings, "distillation_token", None) is not None:
        special.append(("dist", embeddings.distillation_token[0]))
    image, patch = embeddings.patch_embeddings.image_size, embeddings.patch_embeddings.patch_size
    grid = (image[0] // patch[0], image[1] // patch[1])
    layout = TokenLayout(grid=grid, special=tuple((name, i) for i, (name, _) in enumerate(special)))
    embedding = ImageEmbedding(
        weight=projection.weight,
        bias=projection.bias,
        special=torch.cat([token for _, token in special]),
        position=embeddings.position_embeddings[0],
    )
    return embedding, layout
