"""The canonical view of open_clip's models: an image tower, a text tower, and what compares them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..core.layout import Grid
from ..ecosystems.open_clip import made_from
from ..views.embeddings import ImageEmbedding
from ..views.heads import Embedder, Pool
from ..views.sublayers import Affine
from ..views.view import Opaque, Tower, View
from .check import affine
from .open_clip_text import blocks_view, only_runs, text_view
from .teacher import refuse
from .timm_parts import attention_pool
from .timm_vit import norm_view, timm_tower


def open_clip_view(model: Any) -> View:
    """The view of a CLIP or CustomTextCLIP; its tensors are the model's own but for exp(logit_scale). A text
    tower that cannot be expressed is a copy that runs its own code.

    Raises UserError for any other model, an image tower that cannot be expressed, and weights of several
    types.
    """
    kind = type(model).__name__
    if kind not in ("CLIP", "CustomTextCLIP"):
        raise refuse(kind, "only open_clip's CLIP and CustomTextCLIP are known")
    types = " and ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))
    if " " in types:
        raise refuse(kind, "its weights are of several types; write model.float()", dtypes=types)
    image, read = _image(model.visual)
    towers, heads, opaque = {"image": image}, {"image": read}, {}
    text = text_of(model)
    if only_runs(text):
        own: Any = copy.deepcopy(text).eval().requires_grad_(False)
        cfg, _, _ = made_from(model)
        opaque["text"] = Opaque(own, _embed_text, config=None if cfg is None else cfg.get("text_cfg"))
    else:
        towers["text"], heads["text"] = text_view(text)
    scalars = {"scale": model.logit_scale.detach().exp().reshape(())}
    if model.logit_bias is not None:
        scalars["bias"] = model.logit_bias.reshape(())
    return View(towers, heads, scalars, opaque)


def text_of(model: Any) -> Any:
    """What holds the text tower's parts: a CLIP holds them itself."""
    return model.text if hasattr(model, "text") else model


def blocks_of(model: Any) -> dict[str, Sequence[nn.Module]]:
    """By tower, the modules that each return a residual stream."""
    visual, text = model.visual, text_of(model)
    image = visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks
    found: dict[str, Sequence[nn.Module]] = {"image": list(image)}
    if not only_runs(text):
        found["text"] = list(text.transformer.resblocks)
    return found


def _embed_text(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    embedded = module(inputs["text"])
    return embedded[0] if isinstance(embedded, tuple) else embedded


def _image(visual: Any) -> tuple[Tower, Embedder]:
    kind = type(visual).__name__
    if kind == "TimmModel":
        return _trunk(visual)
    if kind != "VisionTransformer":
        raise refuse("image tower", "only a ViT of open_clip's or timm's is known", kind=kind)
    if visual.attn_pool is not None:
        raise refuse("image tower", "open_clip's attentional pooler is not covered", kind=kind)
    if visual.pool_type not in ("tok", "avg"):
        raise refuse("image tower", "it makes no single vector", pool_type=visual.pool_type)
    rows, columns = visual.grid_size
    embedding = ImageEmbedding(
        weight=visual.conv1.weight,
        bias=visual.conv1.bias,
        special=visual.class_embedding[None],
        position=visual.positional_embedding,
        norm=norm_view(visual.ln_pre),
    )
    sublayers = blocks_view(visual.transformer.resblocks, "visual.transformer.resblocks", causal=False)
    norm, after = norm_view(visual.ln_post), visual.final_ln_after_pool
    tower = Tower(embedding, sublayers, None if after else norm, Grid(rows, columns, special=(("cls", 0),)))
    projection = None if visual.proj is None else Affine(visual.proj.T)
    return tower, Embedder(
        "cls" if visual.pool_type == "tok" else "mean", projection, norm if after else None
    )


def _trunk(visual: Any) -> tuple[Tower, Embedder]:
    """An image tower that timm made (TimmModel): its pooling is the trunk's, its projection the head's or the
    trunk's classifier."""
    trunk = visual.trunk
    unknown = [name for name in visual.head._modules if name not in ("drop", "proj")]
    if unknown:
        raise refuse("image tower", "only a linear projection is known", head=", ".join(unknown))
    tower, norm = timm_tower(trunk)
    projection = None
    for name, module in (("trunk.head", trunk.head), ("head.proj", getattr(visual.head, "proj", None))):
        if module is None or isinstance(module, nn.Identity):
            continue
        if projection is not None:
            raise refuse("image tower", "two projections are not covered")
        projection = affine(module, f"visual.{name}")
    return tower, Embedder(_pool(trunk), projection, norm)


def _pool(trunk: Any) -> Pool:
    if trunk.attn_pool is not None:
        return attention_pool(trunk.attn_pool, special=trunk.pool_include_prefix)
    if trunk.global_pool not in ("token", "avg"):
        raise refuse(
            "image tower",
            "only class-token, average and attention pooling are known",
            global_pool=repr(trunk.global_pool),
        )
    if trunk.global_pool == "token":
        return "cls"
    if trunk.num_prefix_tokens > 0 and trunk.pool_include_prefix:
        raise refuse("image tower", "pooling over the prefix tokens is not covered")
    return "mean"
