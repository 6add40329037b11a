"""Which canonical tensor each of Vim's own tensors takes, and how [proposal D2 of the method notes].

One ViT block is two residual sublayers and one Vim layer is one: V and the output projection of attention, or
the two matrices of an MLP, become the value path of a mixer. What has no place is yielded as `Dropped`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from ...errors import UserError
from ...subcloning.selection import Selection, multiplicity
from ...views.view import Affine, View
from ..student import Dropped, Kind, Sublayer, Take

if TYPE_CHECKING:
    from .model import VisionMamba


def plan_ends(student: VisionMamba, view: View, select: Selection) -> Iterator[Take | Dropped]:
    """Embeddings, final norm and head."""
    embedding, keep = view.embedding, select.residual
    if embedding.weight.shape[1] != student.in_chans:
        raise UserError(
            f"teacher has {embedding.weight.shape[1]} input channels, student {student.in_chans}; "
            "set student.kwargs.in_chans"
        )
    patch = student.patch_embed.patch_size
    weight = embedding.weight
    resized = tuple(weight.shape[-2:]) != tuple(patch)
    if resized:
        weight = resample_patch_embed(weight, list(patch))
    yield Take(
        target="patch_embed.proj.weight",
        source="embedding.weight",
        tensor=weight,
        index=(keep, None, None, None),
        made="resampled" if resized else "copied",
    )
    if embedding.bias is not None:
        yield Take(
            target="patch_embed.proj.bias", source="embedding.bias", tensor=embedding.bias, index=(keep,)
        )
    if embedding.norm is not None:
        yield Dropped(source="embedding.norm", why="the student has no norm after its embedding")
    special = [name for name, _ in view.layout.special]
    position = embedding.position
    grid = (*view.layout.grid,)
    patches = position[len(special) :]
    if grid != student.layout.grid:
        patches = resample_abs_pos_embed(
            patches[None], list(student.layout.grid), list(grid), num_prefix_tokens=0
        )[0]
    middle = student.cls_position
    if "cls" in special:
        row = special.index("cls")
        yield Take(
            target="cls_token", source="embedding.special.cls", tensor=embedding.special[row], index=(keep,)
        )
        cls_position = position[row : row + 1]
    else:
        cls_position = torch.zeros_like(patches[:1])
    rows = torch.cat([patches[:middle], cls_position, patches[middle:]])
    yield Take(
        target="pos_embed",
        source="embedding.position",
        tensor=rows,
        index=(None, keep),
        made="permuted" if grid == student.layout.grid else "resampled",
    )
    for name in special:
        if name != "cls":
            yield Dropped(source=f"embedding.special.{name}", why="the student has a class token alone")
    if view.norm is not None and view.norm.weight is not None:
        yield Take(target="norm_f.weight", source="norm.weight", tensor=view.norm.weight, index=(keep,))
    if view.norm is not None and view.norm.bias is not None:
        yield Dropped(source="norm.bias", why="RMSNorm has no bias")
    if view.num_classes == student.num_classes:
        head = view.heads[0][1]
        yield Take(
            target="head.weight",
            source="head.weight",
            tensor=head.weight,
            index=(None, keep),
            scale=multiplicity(keep, view.width),
        )
        if head.bias is not None:
            yield Take(target="head.bias", source="head.bias", tensor=head.bias)
    for token, _ in view.heads[1:]:
        yield Dropped(source=f"head.{token}", why="the student has one head")


def plan_layer(
    student: VisionMamba, view: View, select: Selection, k: int, t: int, sublayer: Sublayer
) -> Iterator[Take | Dropped]:
    """Layer k from attention t (V into the x half, O out) or from MLP t (up into the x half, down out)."""
    block = view.blocks[t]
    mixer: Any = student.layers[k].mixer
    source = f"blocks.{t}.{sublayer}"
    if sublayer == "attention":
        attention = block.attention
        read, write, norm, scale = attention.v, attention.o, attention.norm, attention.scale
        full = read.weight.shape[0]
        paired = select.paired and mixer.has_identity_conv() and mixer.inner % 2 == 0
        if paired:
            read, write = _with_negatives(read, write)
            chosen = select.values(t, full, mixer.inner // 2)
            channels = torch.cat([chosen, chosen + full])
        else:
            channels = select.values(t, full, mixer.inner)
    else:
        read, write, norm, scale, paired = (
            block.mlp.up,
            block.mlp.down,
            block.mlp.norm,
            block.mlp.scale,
            False,
        )
        channels = select.neurons(t, read.weight.shape[0], mixer.inner)
    if scale is not None:
        write = Affine(write.weight * scale[:, None], None if write.bias is None else write.bias * scale)
    made: Kind = "repeated" if paired else "copied"
    keep, into = select.residual, f"layers.{k}.mixer"
    names = ("v", "o") if sublayer == "attention" else ("up", "down")
    if norm.weight is not None:
        yield Take(
            target=f"layers.{k}.norm.weight",
            source=f"{source}.norm.weight",
            tensor=norm.weight,
            index=(keep,),
            layer=k,
        )
    yield Take(
        target=f"{into}.in_proj.weight",
        source=f"{source}.{names[0]}.weight",
        tensor=read.weight,
        index=(channels, keep),
        into=slice(0, mixer.inner),
        scale=multiplicity(keep, view.width),
        layer=k,
        made=made,
    )
    yield Take(
        target=f"{into}.out_proj.weight",
        source=f"{source}.{names[1]}.weight",
        tensor=write.weight,
        index=(keep, channels),
        scale=multiplicity(channels, read.weight.shape[0]),
        layer=k,
        made=made,
    )
    yield from _plan_biases(mixer, read, write, norm.bias, channels, keep, source, names, into, k, made)


def _with_negatives(read: Affine, write: Affine) -> tuple[Affine, Affine]:
    """Channels v and -v for each v, written back as their difference: silu(v) - silu(-v) = v."""
    weight, bias = read.weight, read.bias
    both = Affine(torch.cat([weight, -weight]), None if bias is None else torch.cat([bias, -bias]))
    return both, Affine(torch.cat([write.weight, -write.weight], dim=1), write.bias)


def _plan_biases(
    mixer: Any,
    read: Affine,
    write: Affine,
    norm_bias: Tensor | None,
    channels: Tensor,
    keep: Tensor,
    source: str,
    names: tuple[str, str],
    into: str,
    k: int,
    made: Kind,
) -> Iterator[Take | Dropped]:
    """Biases where the student has a place for them; dropped, and said so, where it has none."""
    if norm_bias is not None:
        yield Dropped(source=f"{source}.norm.bias", why="RMSNorm has no bias", layer=k)
    has_place = mixer.in_proj.bias is not None
    if read.bias is not None and has_place:
        yield Take(
            target=f"{into}.in_proj.bias",
            source=f"{source}.{names[0]}.bias",
            tensor=read.bias,
            index=(channels,),
            into=slice(0, mixer.inner),
            layer=k,
            made=made,
        )
    elif read.bias is not None and mixer.has_identity_conv():
        # behind an identity convolution its bias does what the projection's would
        for conv in ("conv1d", "conv1d_b"):
            yield Take(
                target=f"{into}.{conv}.bias",
                source=f"{source}.{names[0]}.bias",
                tensor=read.bias,
                index=(channels,),
                layer=k,
                made=made,
            )
    elif read.bias is not None:
        yield Dropped(source=f"{source}.{names[0]}.bias", why="in_proj has no bias; set proj_bias", layer=k)
    if write.bias is not None and has_place:
        yield Take(
            target=f"{into}.out_proj.bias",
            source=f"{source}.{names[1]}.bias",
            tensor=write.bias,
            index=(keep,),
            layer=k,
        )
    elif write.bias is not None:
        yield Dropped(source=f"{source}.{names[1]}.bias", why="out_proj has no bias; set proj_bias", layer=k)
