"""A vision transformer with attention alone replaced by a bidirectional Mamba-2 mixer of the same heads.

[proposal, not the paper's] MLPs, norms, embeddings and head are the teacher's, bit for bit; `qkv` and `proj`
of
attention become C, B, x and the output projection with their biases. Chosen layers may keep their attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..canonical import Affine, Norm, View
from ..errors import UserError
from ..layers.mamba2 import SSDAttention
from ..outputs import Branches, Capture, Output, TokenLayout
from ..registry import STUDENTS
from ..selection import Selection
from ..student import Dropped, Sublayer, Take, Writer, depth_map
from .vim import _cfg


class SSDVisionTransformer(VisionTransformer):
    """timm's VisionTransformer whose blocks mix tokens with `SSDAttention`, but for `attention_layers`.

    norm_eps: epsilon of every norm, where the teacher's is not timm's 1e-6
    """

    cloned_by_default: Literal["all", "half"] = "all"

    def __init__(
        self, *, attention_layers: Sequence[int] = (), norm_eps: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if norm_eps is not None:
            for module in self.modules():
                if hasattr(module, "eps"):
                    module.eps = norm_eps
        depth = len(self.blocks)
        if any(layer not in range(depth) for layer in attention_layers):
            raise ValueError(f"attention_layers is {list(attention_layers)}; the layers are 0 to {depth - 1}")
        self.attention_layers = tuple(attention_layers)
        for k, block in enumerate(self.blocks):
            if k not in attention_layers:
                block.attn = SSDAttention(
                    self.embed_dim,
                    block.attn.num_heads,
                    length=self.patch_embed.num_patches + self.num_prefix_tokens,
                    qkv_bias=block.attn.qkv.bias is not None,
                    proj_bias=block.attn.proj.bias is not None,
                )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        decays = {name for name, _ in self.named_parameters() if name.endswith(("A_log", "A_b_log"))}
        return super().no_weight_decay() | decays

    # --- the student's interface
    # ------------------------------------------------------------------------------

    @property
    def layout(self) -> TokenLayout:
        names = (["cls"] if self.has_class_token else []) + [f"reg{i}" for i in range(self.num_reg_tokens)]
        rows, columns = self.patch_embed.grid_size
        return TokenLayout(grid=(rows, columns), special=tuple((name, i) for i, name in enumerate(names)))

    @property
    def width(self) -> int:
        return self.embed_dim

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    @property
    def state_width(self) -> int:
        return self.embed_dim

    def run(self, images: Tensor, capture: Capture) -> Output:
        output = Output(logits=None, layout=self.layout)
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(images))))
        for k, block in enumerate(self.blocks):
            run = partial(self._block, k, block, capture=capture)
            if self.grad_checkpointing and self.training:
                x, half, parts = checkpoint(run, x, use_reentrant=False)
            else:
                x, half, parts = run(x)
            if k in capture.hidden:
                output.hidden[k] = x
            if k in capture.branches:
                here = x if capture.tokens is None else x.index_select(1, capture.tokens)
                output.branches[k] = Branches(here, half, None if half is None else _written(block))
            if k in capture.mixers:
                output.mixers[k] = parts
        output.logits = self.forward_head(self.norm(x))
        return output

    def _block(
        self, k: int, block: Any, x: Tensor, capture: Capture
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        half, parts = None, {}
        if k in self.attention_layers:
            mixed = block.attn(block.norm1(x))
        else:
            out = block.attn.mix(block.norm1(x), branches=k in capture.branches, tokens=capture.tokens)
            mixed, parts = out.output, out.parts
            half = out.half
        survives = block.drop_path1(x.new_ones(len(x), 1, 1))  # one draw for the output and its branches
        half = None if half is None else half * survives.to(half.dtype)
        x = x + survives * block.ls1(mixed)
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), half, parts

    def mixer(self, k: int, hidden: Tensor, capture: Capture) -> tuple[Tensor, dict[str, Tensor]]:
        block: Any = self.blocks[k]
        out = block.attn.mix(block.norm1(hidden), branches=k in capture.branches)
        if out.half is not None:
            out.parts["spread"] = F.linear(out.half, _written(block))
        return block.ls1(out.output), out.parts

    def mixer_sources(self, num_blocks: int) -> dict[int, tuple[int, Sublayer]]:
        sources = depth_map(self.num_layers, num_blocks)
        return {k: (t, "attention") for k, t in enumerate(sources) if k not in self.attention_layers}

    def writers(self, num_blocks: int) -> list[Writer]:
        """Also of MLPs and of layers that keep their attention: as copied they are right for the teacher's
        stream, and what reaches them is the mixers'."""
        writers = []
        block: Any
        for k, t in enumerate(depth_map(self.num_layers, num_blocks)):
            block = self.blocks[k]
            for name, linear, sublayer, scale in (
                ("attn.proj", block.attn.proj, "attention", block.ls1),
                ("mlp.fc2", block.mlp.fc2, "mlp", block.ls2),
            ):
                writers.append(
                    Writer(
                        name=f"blocks.{k}.{name}",
                        linear=linear,
                        layer=k,
                        block=t,
                        sublayer=sublayer,  # type: ignore[arg-type]
                        scale=getattr(scale, "gamma", None),
                    )
                )
        return writers

    def mixer_parameters(self) -> set[str]:
        kept = {f"blocks.{k}." for k in self.attention_layers}
        return {
            name
            for name, _ in self.named_parameters()
            if ".attn." in name and not name.startswith(tuple(kept))
        }

    def plan(self, view: View, select: Selection) -> Iterator[Take | Dropped]:
        if view.width != self.width:
            raise UserError(
                f"ssd_vit keeps the teacher's width {view.width}, but the student is {self.width} wide; "
                f"set student.kwargs.embed_dim={view.width}, or choose a vim student to shrink"
            )
        if isinstance(self.blocks[0].norm1, nn.LayerNorm) and not _suits_layer_norms(view):
            raise UserError(
                "the teacher's RMSNorms read a stream that is not centred (init.rotate does that), and this "
                "ssd_vit has LayerNorms; leave student.model out, and it gets the teacher's norms"
            )
        yield from _plan_ends(self, view)
        for k, t in enumerate(depth_map(self.num_layers, len(view.blocks))):
            yield from _plan_block(self, view, k, t)


def _suits_layer_norms(view: View) -> bool:
    """Whether LayerNorms do what the view's norms do: they are LayerNorms, or its stream is centred."""
    if not view.blocks[0].attention.norm.rms:
        return True
    weight = view.embedding.weight
    return bool(weight.mean(dim=0).abs().max() < 1e-4 * weight.abs().max())


def _written(block: Any) -> Tensor:
    """The matrix (D, D) through which a block's mixer writes, LayerScale included."""
    weight = block.attn.proj.weight
    return weight * block.ls1.gamma[:, None] if hasattr(block.ls1, "gamma") else weight


def _plan_ends(student: SSDVisionTransformer, view: View) -> Iterator[Take | Dropped]:
    embedding = view.embedding
    mine, theirs = student.layout, view.layout
    if mine.grid != theirs.grid:
        raise UserError(
            f"teacher has a {theirs.grid} patch grid, ssd_vit {mine.grid}; use the same size and patch"
        )
    yield Take(target="patch_embed.proj.weight", source="embedding.weight", tensor=embedding.weight)
    yield from _bias("patch_embed.proj.bias", "embedding.bias", Affine(embedding.weight, embedding.bias))
    if embedding.norm is not None:
        yield from _norm("norm_pre", "embedding.norm", embedding.norm)
    rows = [name for name, _ in theirs.special]
    for name, _ in mine.special:
        if name not in rows:
            raise UserError(
                f"ssd_vit has a {name} token and the teacher none; set student.kwargs.class_token=false"
            )
    for name in rows:
        if name not in dict(mine.special):
            yield Dropped(source=f"embedding.special.{name}", why="the student has no such token")
    if "cls" in rows:
        row = rows.index("cls")
        yield Take(target="cls_token", source="embedding.special.cls", tensor=embedding.special[row])
    registers = [i for i, name in enumerate(rows) if name.startswith("reg")]
    if registers:
        index = torch.tensor(registers)
        yield Take(
            target="reg_token",
            source="embedding.special.reg",
            tensor=embedding.special.index_select(0, index.to(embedding.special.device)),
        )
    if student.pos_embed is not None:
        source, _ = theirs.match(mine)
        position = embedding.position
        if student.pos_embed.shape[1] != mine.length:
            source = source[len(mine.special) :]
        yield Take(target="pos_embed", source="embedding.position", tensor=position, index=(source,))
    if view.norm is not None:
        yield from _norm("fc_norm" if view.norm_after_pooling else "norm", "norm", view.norm)
    if view.num_classes == student.num_classes:
        yield Take(target="head.weight", source="head.weight", tensor=view.heads[0][1].weight)
        yield from _bias("head.bias", "head.bias", view.heads[0][1])
    for token, _ in view.heads[1:]:
        yield Dropped(source=f"head.{token}", why="the student has one head")


def _bias(target: str, source: str, affine: Affine, layer: int | None = None) -> Iterator[Take]:
    if affine.bias is not None:
        yield Take(target=target, source=source, tensor=affine.bias, layer=layer)


def _norm(target: str, source: str, norm: Norm, layer: int | None = None) -> Iterator[Take]:
    for name, tensor in (("weight", norm.weight), ("bias", norm.bias)):
        if tensor is not None:
            yield Take(target=f"{target}.{name}", source=f"{source}.{name}", tensor=tensor, layer=layer)


def _plan_block(student: SSDVisionTransformer, view: View, k: int, t: int) -> Iterator[Take | Dropped]:
    block, into, source = view.blocks[t], f"blocks.{k}", f"blocks.{t}"
    attention, mlp = block.attention, block.mlp
    if attention.heads != student.blocks[k].attn.num_heads:
        raise UserError(
            f"teacher has {attention.heads} heads, ssd_vit {student.blocks[k].attn.num_heads}; "
            f"set student.kwargs.num_heads={attention.heads}"
        )
    for name, norm in (("norm1", attention.norm), ("norm2", mlp.norm)):
        kind = "attention" if name == "norm1" else "mlp"
        yield from _norm(f"{into}.{name}", f"{source}.{kind}.norm", norm, layer=k)
    for third, name in enumerate(("q", "k", "v")):
        projection: Affine = getattr(attention, name)
        rows = slice(third * view.width, (third + 1) * view.width)
        yield Take(
            target=f"{into}.attn.qkv.weight",
            source=f"{source}.attention.{name}.weight",
            tensor=projection.weight,
            into=rows,
            layer=k,
        )
        if projection.bias is not None:
            yield Take(
                target=f"{into}.attn.qkv.bias",
                source=f"{source}.attention.{name}.bias",
                tensor=projection.bias,
                into=rows,
                layer=k,
            )
    for target, name, affine in (
        ("attn.proj", "attention.o", attention.o),
        ("mlp.fc1", "mlp.up", mlp.up),
        ("mlp.fc2", "mlp.down", mlp.down),
    ):
        yield Take(
            target=f"{into}.{target}.weight", source=f"{source}.{name}.weight", tensor=affine.weight, layer=k
        )
        yield from _bias(f"{into}.{target}.bias", f"{source}.{name}.bias", affine, layer=k)
    for target, scale in (("ls1", attention.scale), ("ls2", mlp.scale)):
        if scale is not None:
            yield Take(target=f"{into}.{target}.gamma", source=f"{source}.{target}", tensor=scale, layer=k)
    for name, per_head in (("q_norm", attention.q_norm), ("k_norm", attention.k_norm)):
        if per_head is not None and k in student.attention_layers:
            yield from _norm(f"{into}.attn.{name}", f"{source}.attention.{name}", per_head, layer=k)
        elif per_head is not None:
            yield Dropped(
                source=f"{source}.attention.{name}",
                why="an SSD mixer has no query and key norms",
                layer=k,
            )


# --- timm registration
# ---------------------------------------------------------------------------------------

default_cfgs = generate_default_cfgs(
    {
        f"ssd_{name}": _cfg(size, num_classes=classes, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
        for name, size, classes in (
            ("vit_tiny_patch16_224", 224, 1000),
            ("vit_small_patch16_224", 224, 1000),
            ("vit_base_patch16_224", 224, 1000),
            ("vit_mini_patch4_32", 32, 10),
            ("vit_micro_patch2_8", 8, 10),
        )
    }
)


def _create(
    variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]
) -> SSDVisionTransformer:
    out_indices = kwargs.pop("out_indices", 3)
    model = build_model_with_cfg(
        SSDVisionTransformer,
        variant,
        pretrained,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **{**defaults, **kwargs},
    )
    model.transmamba_args = kwargs
    return model


@register_model
def ssd_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> SSDVisionTransformer:
    """The shape of ViT/DeiT-Tiny."""
    defaults = dict(patch_size=16, embed_dim=192, depth=12, num_heads=3)
    return _create("ssd_vit_tiny_patch16_224", pretrained, defaults, kwargs)


@register_model
def ssd_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> SSDVisionTransformer:
    """The shape of ViT/DeiT-Small."""
    defaults = dict(patch_size=16, embed_dim=384, depth=12, num_heads=6)
    return _create("ssd_vit_small_patch16_224", pretrained, defaults, kwargs)


@register_model
def ssd_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> SSDVisionTransformer:
    """The shape of ViT/DeiT-Base."""
    defaults = dict(patch_size=16, embed_dim=768, depth=12, num_heads=12)
    return _create("ssd_vit_base_patch16_224", pretrained, defaults, kwargs)


@register_model
def ssd_vit_mini_patch4_32(pretrained: bool = False, **kwargs: Any) -> SSDVisionTransformer:
    """For 32-pixel images: 64 patches, 6 blocks of 192, 3 heads."""
    defaults = dict(img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3)
    return _create("ssd_vit_mini_patch4_32", pretrained, defaults, kwargs)


@register_model
def ssd_vit_micro_patch2_8(pretrained: bool = False, **kwargs: Any) -> SSDVisionTransformer:
    """For 8-pixel images: 16 patches, 6 blocks of 64, 4 heads."""
    defaults = dict(img_size=8, patch_size=2, embed_dim=64, depth=6, num_heads=4)
    return _create("ssd_vit_micro_patch2_8", pretrained, defaults, kwargs)


@STUDENTS.register("ssd_vit")
@dataclass(frozen=True, kw_only=True)
class SsdVit:
    """An ssd_vit; without `model` its shape is the teacher's."""

    model: str | None = None
    attention_layers: tuple[int, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(
        self, *, num_classes: int, input_size: tuple[int, int, int] | None = None, view: View | None = None
    ) -> nn.Module:
        from ..teachers.timm_vit import create_timm

        shape: dict[str, Any] = {}
        if self.model is None:
            if view is None:
                raise UserError(
                    "student ssd_vit takes its shape from a teacher; name one, or set student.model"
                )
            shape = shape_of(view)
        size: dict[str, Any] = dict(num_classes=num_classes)
        if input_size is not None:
            size |= dict(in_chans=input_size[0], img_size=list(input_size[1:]))
        if self.attention_layers:
            size["attention_layers"] = list(self.attention_layers)
        name = self.model or "ssd_vit_small_patch16_224"
        return create_timm(name, pretrained=False, **{**size, **shape, **self.kwargs})


def shape_of(view: View) -> dict[str, Any]:
    """Constructor arguments of the vision transformer that has this view's shape."""
    special = [name for name, _ in view.layout.special]
    first = view.blocks[0]
    eps = {block.attention.norm.eps for block in view.blocks}
    return dict(
        patch_size=view.embedding.weight.shape[-1],
        embed_dim=view.width,
        depth=len(view.blocks),
        num_heads=first.attention.heads,
        mlp_ratio=first.mlp.up.weight.shape[0] / view.width,
        qkv_bias=first.attention.q.bias is not None,
        qk_norm=first.attention.q_norm is not None,
        proj_bias=first.attention.o.bias is not None,
        class_token="cls" in special,
        reg_tokens=sum(name.startswith("reg") for name in special),
        global_pool="token" if view.heads[0][0] == "cls" else "avg",
        pre_norm=view.embedding.norm is not None,
        final_norm=view.norm is not None,
        fc_norm=view.norm_after_pooling,
        init_values=1.0 if first.attention.scale is not None else None,
        act_layer=activation_name(first.mlp.act),
        norm_layer="rmsnorm" if first.attention.norm.rms else None,
        norm_eps=None if eps == {1e-6} else eps.pop(),
    )


def activation_name(act: Callable[[Tensor], Tensor]) -> str | None:
    """timm's name of an activation, found by what it computes; None for GELU, timm's default.

    Raises UserError for one that timm's vision transformer cannot be given by name.
    """
    from timm.layers import get_act_fn

    grid = torch.linspace(-4, 4, 65)
    for name in ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu"):
        if torch.allclose(act(grid), get_act_fn(name)(grid), atol=1e-6):
            return None if name == "gelu" else name
    raise UserError("ssd_vit copies the teacher's MLPs, but their activation has no name in timm; choose vim")
