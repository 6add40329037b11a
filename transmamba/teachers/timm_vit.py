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
from ..views.heads import Classifier, Head
from ..views.sublayers import Affine, Attention, Mlp, Norm, Sublayer
from ..views.view import Tower, View
from .check import Original, check_view, plain_linear
from .teacher import Teacher, refuse


@TEACHERS.register("timm_vit")
@dataclass(frozen=True, kw_only=True)
class TimmVit:
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

    def build(self) -> Teacher:
        source = read_source(self.model, self.architecture)
        known = source.architecture if source.file is not None else source.text if source.bare else None
        if self.pretrained and known is not None:
            check_known(known, **self.kwargs)  # before its weights are fetched
        return self.adapt(create_timm(source, pretrained=self.pretrained, **self.kwargs), source=self.model)

    @staticmethod
    def recognise(source: Source) -> TimmVit | None:
        known = library.recognise(source)
        return TimmVit(model=source.text, architecture=source.architecture) if known else None

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        from timm.models.vision_transformer import VisionTransformer

        return isinstance(module, VisionTransformer) and type(module).__module__.startswith("timm.")

    @staticmethod
    def adapt(module: nn.Module, *, source: str) -> Teacher:
        model: Any = module
        origin = library.origin(model)
        teacher = Teacher(
            timm_view(model),
            source=source,
            preprocessing=library.preprocessing(model),
            num_params=sum(p.numel() for p in model.parameters()),
            class_names=library.class_names(model),
            licence=origin.licence,
            base_model=origin.base_model,
        )
        check_view(teacher, TimmVit.original(module))
        return teacher

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

    Raises UserError for what the view cannot express (parallel blocks, attention pooling, gated attention
    ...).
    """
    tower, after_pooling = timm_tower(model)
    name = type(model).__name__
    if model.attn_pool is not None or model.global_pool not in ("token", "avg"):
        raise refuse(name, "only class-token and average pooling are known", global_pool=model.global_pool)
    if model.pool_include_prefix:
        raise refuse(name, "pooling over the prefix tokens is not covered")
    head = _head(model, after_pooling)
    return View({"image": tower}, {} if head is None else {"image": head})


def timm_tower(model: Any) -> tuple[Tower, Norm | None]:
    """The tower of a timm ViT without what is read from it, and the norm of what is pooled, where the model
    has it there."""
    from timm.models.vision_transformer import Block as TimmBlock
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise refuse(type(model).__name__, "only timm's VisionTransformer and distilled DeiT are known")
    sublayers: list[Sublayer] = []
    for index, block in enumerate(model.blocks):
        if type(block) is not TimmBlock:
            raise refuse(
                f"block {index}", "only the plain pre-norm block is known", kind=type(block).__name__
            )
        sublayers += [_attention(block, f"blocks.{index}"), _mlp(block, f"blocks.{index}")]
    embedding, layout = _embedding(model)
    after_pooling = not isinstance(model.fc_norm, nn.Identity)
    norm = None if after_pooling else norm_view(model.norm)
    tower = Tower(embedding, tuple(sublayers), norm, layout)
    return tower, norm_view(model.fc_norm) if after_pooling else None


def _head(model: Any, norm: Norm | None) -> Head | None:
    """Its classifier; None for a backbone (`num_classes=0`)."""
    if isinstance(model.head, nn.Identity):
        return None
    readouts = [("cls" if model.global_pool == "token" else "mean", _affine(model.head, "head"))]
    if hasattr(model, "head_dist"):
        readouts.append(("dist", _affine(model.head_dist, "head_dist")))
    return Classifier(tuple(readouts), norm)


def norm_view(module: nn.Module) -> Norm | None:
    """A LayerNorm or RMSNorm module as a `Norm`; None for an identity."""
    if isinstance(module, nn.Identity):
        return None
    if isinstance(module, nn.LayerNorm):
        return Norm(module.weight, module.bias, module.eps)
    if "RmsNorm" in type(module).__name__ or isinstance(module, nn.RMSNorm):
        weight: Any = getattr(module, "weight", None)
        eps: Any = module.eps
        if eps is None:  # torch's RMSNorm then takes the smallest step of its input's type
            eps = torch.finfo(torch.float32 if weight is None else weight.dtype).eps
        return Norm(weight, None, float(eps), rms=True)
    raise refuse("norm", "only LayerNorm and RMSNorm are known", kind=type(module).__name__)


def _affine(module: Any, name: str) -> Affine:
    linear = plain_linear(module, name)
    return Affine(linear.weight, linear.bias)


def _split(linear: nn.Linear) -> list[Affine]:
    weights = linear.weight.chunk(3)
    biases: Any = linear.bias.chunk(3) if linear.bias is not None else (None, None, None)
    return [Affine(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _attention(block: Any, name: str) -> Attention:
    attn = block.attn
    if type(attn).__name__ != "Attention" or getattr(attn, "gate", None) is not None:
        raise refuse("attention", "only plain softmax attention is known", kind=type(attn).__name__)
    if not isinstance(attn.norm, nn.Identity):
        raise refuse("attention", "a norm before the output projection is not covered")
    q, k, v = _split(plain_linear(attn.qkv, f"{name}.attn.qkv"))
    norm = norm_view(block.norm1)
    assert norm is not None, "a pre-norm block has a norm"
    return Attention(
        norm=norm,
        q=q,
        k=k,
        v=v,
        o=_affine(attn.proj, f"{name}.attn.proj"),
        heads=attn.num_heads,
        q_norm=norm_view(attn.q_norm),
        k_norm=norm_view(attn.k_norm),
        scale=getattr(block.ls1, "gamma", None),
    )


def _mlp(block: Any, name: str) -> Mlp:
    mlp = block.mlp
    if type(mlp).__name__ != "Mlp" or not isinstance(mlp.norm, nn.Identity):
        raise refuse("MLP", "only the plain two-layer MLP is known", kind=type(mlp).__name__)
    norm = norm_view(block.norm2)
    assert norm is not None, "a pre-norm block has a norm"
    return Mlp(
        norm=norm,
        up=_affine(mlp.fc1, f"{name}.mlp.fc1"),
        down=_affine(mlp.fc2, f"{name}.mlp.fc2"),
        act=mlp.act,
        scale=getattr(block.ls2, "gamma", None),
    )


def _embedding(model: Any) -> tuple[ImageEmbedding, Grid]:
    patch = model.patch_embed
    if type(patch).__name__ != "PatchEmbed" or not isinstance(patch.norm, nn.Identity):
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
    )
    return embedding, layout
