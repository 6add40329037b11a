"""timm's VisionTransformer and distilled DeiT as teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..config.registry import TEACHERS
from ..core.layout import Grid
from ..ecosystems import timm as library
from ..ecosystems.sources import Source, read_source
from ..ecosystems.timm import check_options, create_timm
from ..errors import UserError
from ..views.embeddings import ImageEmbedding
from ..views.heads import Classifier, Head, Pool
from ..views.sublayers import Norm, Sublayer
from ..views.view import Tower, View
from .check import Original
from .of_module import OfModule
from .teacher import Teacher, refuse
from .timm_parts import affine, attention, attention_pool, mlp, norm_view

# class of timm's -> what of it no view has
_BIASES = "relative position biases in its attention"
_LACKING = {
    "Beit": _BIASES,
    "Eva": "the blocks of EVA, EVA-02 and DINOv3, with rotary positions in two dimensions",
    "NaFlexVit": "patches of any number, in rows of a padded batch",
    "SwinTransformer": f"shifted windows and {_BIASES}",
    "SwinTransformerV2": f"shifted windows and {_BIASES}",
    "VisionTransformerRelPos": _BIASES,
    "VisionTransformerSAM": f"windows and {_BIASES}",
}


@TEACHERS.register("timm_vit")
@dataclass(frozen=True, kw_only=True)
class TimmVit(OfModule):
    """A timm ViT or DeiT. Without a classifier it teaches features alone.

    model: a timm name, `hf-hub:ID`, a folder that timm or transmamba wrote, or a file of weights
    architecture: the timm name of the model whose weights a file holds
    pretrained: with its weights; false for random ones, to try things out
    kwargs: for timm.create_model, such as img_size
    """

    model: str
    architecture: str | None = None
    pretrained: bool = True
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.kwargs)

    def load(self) -> nn.Module:
        source = read_source(self.model, self.architecture)
        known = source.architecture if source.file is not None else source.text if source.bare else None
        if self.pretrained and known is not None:
            check_known(known, **self.kwargs)  # before its weights are fetched
        return create_timm(source, pretrained=self.pretrained, **self.kwargs)

    def empty(self) -> nn.Module:
        """Without weights, on the meta device; of a file of weights, with the classes of its tensors."""
        source = read_source(self.model, self.architecture)
        with torch.device("meta"):
            return create_timm(source, pretrained=False, **self.kwargs)

    @staticmethod
    def recognise(source: Source) -> TimmVit | None:
        known = library.recognise(source)
        return TimmVit(model=source.text, architecture=source.architecture) if known else None

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        from timm.models.vision_transformer import VisionTransformer

        return isinstance(module, VisionTransformer) and type(module).__module__.startswith("timm.")

    @staticmethod
    def describe(module: nn.Module, *, source: str) -> Teacher:
        model: Any = module
        origin = library.origin(model)
        return Teacher(
            timm_view(model),
            source=source,
            preprocessing=library.preprocessing(model),
            num_params=sum(p.numel() for p in model.parameters()),
            class_names=library.class_names(model),
            licence=origin.licence,
            base_model=origin.base_model,
        )

    @staticmethod
    def original(module: nn.Module) -> Original:
        model: Any = module

        def outputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if isinstance(model.head, nn.Identity):
                return {"end.image": model.forward_features(inputs["image"])}
            # in evaluation mode a distilled DeiT gives the mean of its two heads
            return {"logits": model(inputs["image"])}

        return Original(model, outputs, {"image": list(model.blocks)})


def check_known(name: str, **kwargs: Any) -> None:
    """Raises UserError for a timm model that `timm_view` cannot express, without making its tensors."""
    try:
        with torch.device("meta"):
            model = create_timm(name, pretrained=False, **kwargs)
    except UserError:
        return  # not every timm makes every model so; the real one says what is wrong
    timm_view(model)


def timm_view(model: Any) -> View:
    """The canonical view of a timm ViT; its tensors are the model's own, no copies.

    Raises UserError for what the view cannot express (parallel blocks, gated attention, maximum pooling ...).
    """
    tower, after_pooling = timm_tower(model)
    name = type(model).__name__
    if model.global_pool not in ("token", "avg", "map"):
        raise refuse(
            name, "only class-token, average and map pooling are known", global_pool=model.global_pool
        )
    if model.pool_include_prefix and model.global_pool == "avg":
        raise refuse(name, "averaging over the prefix tokens is not covered")
    head = _head(model, after_pooling)
    return View({"image": tower}, {} if head is None else {"image": head})


def timm_tower(model: Any) -> tuple[Tower, Norm | None]:
    """The tower of a timm ViT without what is read from it, and the norm of what is pooled, where the model
    has it there."""
    from timm.models.vision_transformer import Block as TimmBlock
    from timm.models.vision_transformer import VisionTransformer

    name = type(model).__name__
    if type(model).__module__.startswith("transmamba.students."):
        raise refuse(name, "it is a student already, in which Mamba stands for attention; write its teacher")
    if not isinstance(model, VisionTransformer):
        why = f"it has {_LACKING[name]}, and " if name in _LACKING else ""
        raise refuse(name, f"{why}only timm's VisionTransformer and distilled DeiT are known")
    sublayers: list[Sublayer] = []
    for index, block in enumerate(model.blocks):
        if type(block) is not TimmBlock:
            raise refuse(
                f"block {index}", "only the plain pre-norm block is known", kind=type(block).__name__
            )
        scales = [getattr(scale, "gamma", None) for scale in (block.ls1, block.ls2)]
        sublayers.append(attention(block.attn, block.norm1, scales[0], f"blocks.{index}.attn"))
        sublayers.append(mlp(block.mlp, block.norm2, scales[1], f"blocks.{index}.mlp"))
    embedding, layout = _embedding(model)
    after_pooling = not isinstance(model.fc_norm, nn.Identity)
    norm = None if after_pooling else norm_view(model.norm)
    tower = Tower(embedding, tuple(sublayers), norm, layout)
    return tower, norm_view(model.fc_norm) if after_pooling else None


def _head(model: Any, norm: Norm | None) -> Head | None:
    """Its classifier; None for a backbone (`num_classes=0`)."""
    if isinstance(model.head, nn.Identity):
        return None
    how: Pool = "cls" if model.global_pool == "token" else "mean"
    if model.attn_pool is not None:
        how = attention_pool(model.attn_pool, special=model.pool_include_prefix)
    readouts = [(how, affine(model.head, "head"))]
    if hasattr(model, "head_dist"):
        readouts.append(("dist", affine(model.head_dist, "head_dist")))
    return Classifier(tuple(readouts), norm)


def _embedding(model: Any) -> tuple[ImageEmbedding, Grid]:
    patch = model.patch_embed
    if type(patch).__name__ != "PatchEmbed":
        raise refuse("patch embedding", "only one convolution is known", kind=type(patch).__name__)
    names: list[str] = []
    tokens: list[Tensor] = []
    if model.cls_token is not None:
        names.append("cls")
        tokens.append(model.cls_token[0])
    if getattr(model, "dist_token", None) is not None:
        names.append("dist")
        tokens.append(model.dist_token[0])
    if model.reg_token is not None:
        names += [f"reg{i}" for i in range(model.reg_token.shape[1])]
        tokens.append(model.reg_token[0])
    width = patch.proj.weight.shape[0]
    special = torch.cat(tokens) if tokens else patch.proj.weight.new_zeros(0, width)
    length = patch.num_patches + len(names)
    position = special.new_zeros(length, width) if model.pos_embed is None else model.pos_embed[0]
    if len(position) == patch.num_patches:
        position = torch.cat([special.new_zeros(len(names), width), position])
    layout = Grid(
        patch.grid_size[0], patch.grid_size[1], special=tuple((name, i) for i, name in enumerate(names))
    )
    embedding = ImageEmbedding(
        weight=patch.proj.weight,
        bias=patch.proj.bias,
        special=special,
        position=position,
        norm=norm_view(model.norm_pre),
        patch_norm=norm_view(patch.norm),
    )
    return embedding, layout
