"""Which canonical tensor each of Vim's own tensors takes, and how [proposal D2 of the method notes].

One ViT block is two residual sublayers and one Vim layer is one: V and the output projection of attention, or
the two matrices of an MLP, become the value path of a mixer. What has no place is yielded as `Dropped`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from ...errors import UserError
from ...subcloning.plan import Dropped, Kind, Take
from ...subcloning.selection import Selection, multiplicity
from ...views.embeddings import ImageEmbedding
from ...views.heads import Classifier, Embedder, Head
from ...views.sublayers import Affine, Attention, Mlp
from ...views.view import Tower, View
from ..reading import check_heads, pool_dropped, rope_dropped
from ..timm_arguments import Asked, image_embedding

if TYPE_CHECKING:
    from .model import VisionMamba


Items = Iterator[Take | Dropped]


def plan_ends(student: VisionMamba, view: View, select: Selection, asked: Asked) -> Items:
    """Embeddings, final norm and head."""
    tower, head = view.towers["image"], view.heads.get("image")
    (embedding, layout), keep = image_embedding(view), select.residual
    check_heads(tower, "vim")
    if embedding.weight.shape[1] != student.in_chans:
        raise UserError(
            f"teacher has {embedding.weight.shape[1]} input channels, student {student.in_chans}; "
            f"set {asked.at}.kwargs.in_chans={embedding.weight.shape[1]}"
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
    # none is a bias of 0: left as it began, the student's would be random
    bias = weight.new_zeros(len(weight)) if embedding.bias is None else embedding.bias
    yield Take(target="patch_embed.proj.bias", source="embedding.bias", tensor=bias, index=(keep,))
    if embedding.patch_norm is not None:
        yield Dropped(source="embedding.patch_norm", why="the student has no norm of its patches alone")
    yield from _plan_norm_pre(student, embedding, keep)
    special = [name for name, _ in layout.special]
    position = embedding.position
    grid = layout.grid
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
    yield from _plan_head(student, tower, head, keep)
    pooled = "the mean of the patches" if student.global_pool == "avg" else "the class token"
    yield from pool_dropped(view, pooled)


def _plan_norm_pre(student: VisionMamba, embedding: ImageEmbedding, keep: Tensor) -> Iterator[Take | Dropped]:
    norm = embedding.norm
    if norm is None:
        return
    if isinstance(student.norm_pre, nn.Identity):
        yield Dropped(
            source="embedding.norm", why="the student has no norm after its embedding; set pre_norm"
        )
        return
    for name, tensor in (("weight", norm.weight), ("bias", norm.bias)):
        if tensor is not None:
            yield Take(
                target=f"norm_pre.{name}", source=f"embedding.norm.{name}", tensor=tensor, index=(keep,)
            )


def _plan_head(
    student: VisionMamba, tower: Tower, head: Head | None, keep: Tensor
) -> Iterator[Take | Dropped]:
    """The last norm and the classifier."""
    after = head.norm if isinstance(head, Classifier | Embedder) else None
    norm = tower.norm if after is None else after
    if norm is not None and norm.weight is not None:
        yield Take(target="norm_f.weight", source="norm.weight", tensor=norm.weight, index=(keep,))
    if norm is not None and norm.bias is not None:
        yield Dropped(source="norm.bias", why="RMSNorm has no bias")
    if isinstance(head, Embedder) and head.projection is not None:
        yield Dropped(source="head.projection", why="the student classifies, the teacher embeds")
    if not isinstance(head, Classifier):
        return
    linear = head.readouts[0][1]
    if head.num_classes == student.num_classes:
        yield Take(
            target="head.weight",
            source="head.weight",
            tensor=linear.weight,
            index=(None, keep),
            scale=multiplicity(keep, tower.width),
        )
        if linear.bias is not None:
            yield Take(target="head.bias", source="head.bias", tensor=linear.bias)
    for token, _ in head.readouts[1:]:
        yield Dropped(source=f"head.{token}", why="the student has one head")


def plan_layer(
    student: VisionMamba, tower: Tower, select: Selection, k: int, s: int
) -> Iterator[Take | Dropped]:
    """Layer k from sublayer s: from attention V into the x half and O out, from an MLP up into the x half and
    down out, and a SiLU gate into the z half."""
    sublayer = tower.sublayers[s]
    mixer: Any = student.layers[k].mixer
    source = tower.names[s]
    norm, scale, paired = sublayer.norm, sublayer.scale, False
    if isinstance(sublayer, Attention):
        read, write = sublayer.v, sublayer.o
        full = read.weight.shape[0]
        paired = select.paired and mixer.has_identity_conv() and mixer.inner % 2 == 0
        if paired:
            read, write = _with_negatives(read, write)
            chosen = select.inner(s, full, mixer.inner // 2)
            channels = torch.cat([chosen, chosen + full])
        else:
            channels = select.inner(s, full, mixer.inner)
    else:
        read, write = sublayer.up, sublayer.down
        channels = select.inner(s, read.weight.shape[0], mixer.inner)
    if scale is not None:
        write = Affine(write.weight * scale[:, None], None if write.bias is None else write.bias * scale)
    made: Kind = "repeated" if paired else "copied"
    keep, into = select.residual, f"layers.{k}.mixer"
    names = ("v", "o") if isinstance(sublayer, Attention) else ("up", "down")
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
        scale=multiplicity(keep, tower.width),
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
    if isinstance(sublayer, Attention):
        yield from rope_dropped(sublayer, source, k)
    elif sublayer.gate is not None:
        yield from _plan_gate(mixer, sublayer, channels, select, f"{source}.gate", into, k)


def _plan_gate(
    mixer: Any, mlp: Mlp, channels: Tensor, select: Selection, source: str, into: str, k: int
) -> Iterator[Take | Dropped]:
    """A SwiGLU's gate as the mixer's: both multiply by SiLU of a linear. Another activation has no place."""
    gate = mlp.gate
    assert gate is not None, "the caller has looked"
    width = gate.weight.shape[1]
    grid = torch.linspace(-4, 4, 65)
    if not torch.allclose(mlp.act(grid), F.silu(grid), atol=1e-6):
        for kind, tensor in (("weight", gate.weight), ("bias", gate.bias)):
            if tensor is not None:
                yield Dropped(source=f"{source}.{kind}", why="a Mamba's gate is a SiLU", layer=k)
        return
    rows = slice(mixer.inner, 2 * mixer.inner)
    yield Take(
        target=f"{into}.in_proj.weight",
        source=f"{source}.weight",
        tensor=gate.weight,
        index=(channels, select.residual),
        into=rows,
        scale=multiplicity(select.residual, width),
        layer=k,
    )
    # none is a bias of 0: left as it began, it would hold the gate open
    bias = gate.weight.new_zeros(len(gate.weight)) if gate.bias is None else gate.bias
    take = partial(Take, source=f"{source}.bias", tensor=bias, index=(channels,), layer=k)
    if mixer.gate_bias is not None:
        yield take(target=f"{into}.gate_bias")
    elif mixer.in_proj.bias is not None:
        yield take(target=f"{into}.in_proj.bias", into=rows)
    elif gate.bias is not None:
        yield Dropped(source=f"{source}.bias", why="the gate has no bias; set gate_bias", layer=k)


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
