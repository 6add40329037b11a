"""Which canonical tensor each of ssd_vit's own tensors takes, as it is: an ssd_vit has its teacher's shape.

`qkv` and `proj` of attention become those of the mixer. What has no place is yielded as `Dropped`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ...errors import UserError
from ...subcloning.plan import Dropped, Take
from ...views.heads import AttentionPool, Classifier, Embedder
from ...views.sublayers import Affine, Attention, Mlp
from ...views.view import Tower, View
from ..reading import check_heads, pool_dropped, pool_of, rope_dropped, take_affine, take_norm
from ..timm_arguments import Asked, image_embedding

if TYPE_CHECKING:
    from .model import SSDVisionTransformer


def plan_ends(student: SSDVisionTransformer, view: View, asked: Asked) -> Iterator[Take | Dropped]:
    """Embeddings, final norm and head."""
    tower, head = view.towers["image"], view.heads.get("image")
    (embedding, theirs), mine = image_embedding(view), student.layout
    if embedding.centre:
        raise UserError("ssd_vit cannot centre what a norm after the embedding makes; set init.fold to false")
    check_heads(tower, "ssd_vit")
    channels, wanted = embedding.weight.shape[1], student.patch_embed.proj.weight.shape[1]
    if channels != wanted:
        raise UserError(
            f"teacher has {channels} input channels, student {wanted}; "
            f"set {asked.at}.kwargs.in_chans={channels}"
        )
    if mine.grid != theirs.grid:
        raise UserError(
            f"teacher has a {theirs.grid} patch grid, ssd_vit {mine.grid}; leave img_size and patch_size out "
            f"of {asked.at}.kwargs"
        )
    yield Take(target="patch_embed.proj.weight", source="embedding.weight", tensor=embedding.weight)
    yield from _bias("patch_embed.proj.bias", "embedding.bias", Affine(embedding.weight, embedding.bias))
    if embedding.patch_norm is not None:
        yield from take_norm("patch_embed.norm", "embedding.patch_norm", embedding.patch_norm)
    if embedding.norm is not None:
        yield from take_norm("norm_pre", "embedding.norm", embedding.norm)
    rows = [name for name, _ in theirs.special]
    for name, _ in mine.special:
        if name not in rows:
            raise UserError(
                f"ssd_vit has a {name} token and the teacher none; set {asked.at}.kwargs.class_token=false"
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
        source = theirs.match(mine).here
        position = embedding.position
        if student.pos_embed.shape[1] != mine.length:
            source = source[len(mine.special) :]
        yield Take(target="pos_embed", source="embedding.position", tensor=position, index=(source,))
    if tower.norm is not None:
        yield from take_norm("norm", "norm", tower.norm)
    yield from _pool(student, view)
    if isinstance(head, Classifier | Embedder) and head.norm is not None:
        yield from take_norm("fc_norm", "norm", head.norm)
    if isinstance(head, Embedder) and head.projection is not None:
        yield Dropped(source="head.projection", why="the student classifies, the teacher embeds")
    if not isinstance(head, Classifier):
        return
    linear = head.readouts[0][1]
    if head.num_classes == student.num_classes:
        yield Take(target="head.weight", source="head.weight", tensor=linear.weight)
        yield from _bias("head.bias", "head.bias", linear)
    for token, _ in head.readouts[1:]:
        yield Dropped(source=f"head.{token}", why="the student has one head")


def _pool(student: SSDVisionTransformer, view: View) -> Iterator[Take | Dropped]:
    """The teacher's attention pool where the student has one, else what the student reads instead."""
    pool, width = pool_of(view), student.width
    if student.attn_pool is None or not isinstance(pool, AttentionPool):
        read = "the class token" if student.global_pool == "token" else f"by {student.global_pool} pooling"
        yield from pool_dropped(view, read)
        return
    yield Take(target="attn_pool.latent", source="pool.latent", tensor=pool.latent)
    rows = {"k": slice(0, width), "v": slice(width, 2 * width)}
    for target, name in (
        ("q", "q"),
        ("kv", "k"),
        ("kv", "v"),
        ("proj", "o"),
        ("norm", "norm"),
        ("mlp.fc1", "up"),
        ("mlp.fc2", "down"),
    ):
        part = getattr(pool, name)
        for kind in ("weight", "bias"):
            tensor = None if part is None else getattr(part, kind)
            if tensor is not None:
                yield Take(
                    target=f"attn_pool.{target}.{kind}",
                    source=f"pool.{name}.{kind}",
                    tensor=tensor,
                    into=rows.get(name),
                )


def _bias(target: str, source: str, affine: Affine, layer: int | None = None) -> Iterator[Take]:
    if affine.bias is not None:
        yield Take(target=target, source=source, tensor=affine.bias, layer=layer)


def _check_plain(attention: Attention, source: str, asked: Asked) -> None:
    """Raises UserError for what timm's attention, which a block may keep, does not do."""
    more = dict(
        rope=attention.rope is not None,
        causal=attention.causal,
        window=attention.window is not None,
        softmax_scale=attention.softmax_scale is not None,
    )
    found = [name for name, there in more.items() if there]
    if found:
        raise UserError(
            f"ssd_vit cannot keep the attention of {source}: it has {', '.join(found)}, which timm's has "
            f"not; leave {asked.at}.attention_layers out"
        )


def plan_block(
    student: SSDVisionTransformer, tower: Tower, k: int, t: int, asked: Asked
) -> Iterator[Take | Dropped]:
    """Block k from the teacher's block t, attention and then an MLP."""
    into, source = f"blocks.{k}", f"blocks.{t}"
    attention, mlp = tower.sublayers[tower.ends[t] - 1], tower.sublayers[tower.ends[t]]
    assert isinstance(attention, Attention) and isinstance(mlp, Mlp), "a block of a vision transformer"
    if k in student.attention_layers:
        _check_plain(attention, source, asked)
    yield from rope_dropped(attention, f"{source}.attention", k)
    if attention.heads != student.blocks[k].attn.num_heads:
        raise UserError(
            f"teacher has {attention.heads} heads, ssd_vit {student.blocks[k].attn.num_heads}; "
            f"set {asked.at}.kwargs.num_heads={attention.heads}"
        )
    for name, norm in (("norm1", attention.norm), ("norm2", mlp.norm)):
        kind = "attention" if name == "norm1" else "mlp"
        yield from take_norm(f"{into}.{name}", f"{source}.{kind}.norm", norm, layer=k)
    for third, name in enumerate(("q", "k", "v")):
        rows = slice(third * tower.width, (third + 1) * tower.width)
        yield from take_affine(
            f"{into}.attn.qkv", f"{source}.attention.{name}", getattr(attention, name), k, rows
        )
    linears = [
        ("attn.proj", "attention.o", attention.o),
        ("mlp.fc1" if mlp.gate is None else "mlp.fc1_x", "mlp.up", mlp.up),
        ("mlp.fc2", "mlp.down", mlp.down),
    ]
    if mlp.gate is not None:
        linears.append(("mlp.fc1_g", "mlp.gate", mlp.gate))
    for target, name, affine in linears:
        yield from take_affine(f"{into}.{target}", f"{source}.{name}", affine, k)
    for target, scale in (("ls1", attention.scale), ("ls2", mlp.scale)):
        if scale is not None:
            yield Take(target=f"{into}.{target}.gamma", source=f"{source}.{target}", tensor=scale, layer=k)
    for name, per_head in (("q_norm", attention.q_norm), ("k_norm", attention.k_norm)):
        if per_head is not None and k in student.attention_layers:
            yield from take_norm(f"{into}.attn.{name}", f"{source}.attention.{name}", per_head, layer=k)
        elif per_head is not None:
            yield Dropped(
                source=f"{source}.attention.{name}",
                why="an SSD mixer has no query and key norms",
                layer=k,
            )
