"""A canonical view without norm weights and LayerScale: folded into the linears around them, the function
kept.

An RMSNorm student then takes the teacher's tensors without a loss.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from torch import Tensor

from ..errors import UserError
from .embeddings import Embedding, ImageEmbedding, PointEmbedding, Spliced, TokenEmbedding
from .heads import AttentionPool, Classifier, Embedder, Head, LanguageHead, Pool, Readout
from .placed import changed, skeletons
from .sublayers import Affine, Attention, Mlp, Norm, Sublayer
from .view import Tower, View


def fold(view: View) -> View:
    """The same function with plain RMSNorms: LayerScale goes into the projections, and each norm's weight and
    bias go into the linear that reads it.

    Where the norms are LayerNorms, every write to the residual stream is centred too: a LayerNorm of a
    centred vector is an RMSNorm of it. What a norm right after the embedding makes is centred by the
    embedding itself. A language head that was tied to its embedding is a matrix of its own then. A tower
    whose last stream another one reads as it is (LLaVA's) keeps that stream, so its LayerNorms stay what they
    are, without weight and bias. Raises UserError for another tower without a last norm, whose stream need
    not be centred, and one that mixes both kinds of norm.
    """
    towers, heads = {}, dict(view.heads)
    embeddings = [tower.embedding for tower in view.towers.values()]
    spliced = [embedding.source for embedding in embeddings if isinstance(embedding, Spliced)]
    for name, tower in view.towers.items():
        if name in spliced and tower.norm is None:  # whoever reads its stream reads its mean too
            towers[name] = _fold_tower(tower, centred=False)
            continue
        head = view.heads.get(name)
        if isinstance(tower.embedding, PointEmbedding):
            raise UserError("this teacher of points cannot be folded, nor need it be; set fold to false")
        if isinstance(tower.embedding, Spliced):
            tower = dataclasses.replace(tower, embedding=_reading(tower.embedding, view))
        last = _last_norm(tower, head)
        norms = [sublayer.norm for sublayer in skeletons(tower.sublayers)]
        if last is None or len({norm.rms for norm in [last, *norms]}) != 1:
            raise UserError(
                "this teacher cannot be folded: every block and its end need a LayerNorm, or all of them an "
                "RMSNorm; set fold to false"
            )
        towers[name] = _fold_tower(tower, centred=not last.rms)
        if head is not None:
            heads[name] = _fold_head(head, last)
    return dataclasses.replace(view, towers=towers, heads=heads)


def _reading(embedding: Spliced, view: View) -> Spliced:
    """With the last norm of the tower that it reads in its connector."""
    norm = view.towers[embedding.source].norm
    if norm is None:
        return embedding
    linears = (_absorb(embedding.connector.linears[0], norm), *embedding.connector.linears[1:])
    return dataclasses.replace(embedding, connector=dataclasses.replace(embedding.connector, linears=linears))


def _last_norm(tower: Tower, head: Head | None) -> Norm | None:
    after_pooling = head.norm if isinstance(head, Classifier | Embedder) else None
    return tower.norm if after_pooling is None else after_pooling


def _fold_tower(tower: Tower, centred: bool) -> Tower:
    return dataclasses.replace(
        tower,
        embedding=_centre(tower.embedding) if centred else tower.embedding,
        sublayers=changed(tower.sublayers, partial(_fold_sublayer, centred=centred)),
        norm=None if tower.norm is None else _bare(tower.norm, centred),
    )


def _fold_sublayer(sublayer: Sublayer, centred: bool) -> Sublayer:
    norm = sublayer.norm
    if isinstance(sublayer, Attention):
        return dataclasses.replace(
            sublayer,
            norm=_bare(norm, centred),
            q=_absorb(sublayer.q, norm),
            k=_absorb(sublayer.k, norm),
            v=_absorb(sublayer.v, norm),
            o=_writing(sublayer.o, sublayer.scale, centred),
            scale=None,
        )
    assert isinstance(sublayer, Mlp), "there are two kinds"
    return dataclasses.replace(
        sublayer,
        norm=_bare(norm, centred),
        up=_absorb(sublayer.up, norm),
        gate=None if sublayer.gate is None else _absorb(sublayer.gate, norm),
        down=_writing(sublayer.down, sublayer.scale, centred),
        scale=None,
    )


def _fold_head(head: Head, norm: Norm) -> Head:
    assert not isinstance(head, Readout), "no tower of points is folded"
    if isinstance(head, LanguageHead):
        return LanguageHead(_absorb(head.linear, norm))
    bare = None if head.norm is None else _bare(head.norm, centred=True)
    pools = [how for how, _ in head.readouts] if isinstance(head, Classifier) else [head.pool]
    if bare is not None and any(isinstance(how, AttentionPool) for how in pools):
        raise UserError("this teacher cannot be folded: a norm follows its attention pool; set fold to false")
    if isinstance(head, Classifier):
        return Classifier(tuple(_fold_readout(how, linear, norm) for how, linear in head.readouts), bare)
    return Embedder(*_fold_readout(head.pool, head.projection, norm), bare)


def _fold_readout(how: Pool, linear: Any, norm: Norm) -> tuple[Pool, Any]:
    """What reads the normed stream takes the norm's weight and bias: an attention pool, or the linear."""
    if isinstance(how, AttentionPool):
        return dataclasses.replace(how, k=_absorb(how.k, norm), v=_absorb(how.v, norm)), linear
    if linear is None:
        raise UserError("this teacher cannot be folded: its embedding has no projection; set fold to false")
    return how, _absorb(linear, norm)


def _centre(embedding: Embedding) -> Embedding:
    if isinstance(embedding, TokenEmbedding):
        return _centre_rows(embedding)
    if isinstance(embedding, Spliced):
        last = _writing(embedding.connector.linears[-1], None, centred=True)
        linears = (*embedding.connector.linears[:-1], last)
        return dataclasses.replace(
            embedding,
            tokens=_centre_rows(embedding.tokens),
            connector=dataclasses.replace(embedding.connector, linears=linears),
        )
    assert isinstance(embedding, ImageEmbedding), "there are three kinds"
    if embedding.norm is not None or embedding.patch_norm is not None:
        return dataclasses.replace(embedding, centre=True)
    return dataclasses.replace(
        embedding,
        weight=embedding.weight - embedding.weight.mean(dim=0, keepdim=True),
        bias=None if embedding.bias is None else embedding.bias - embedding.bias.mean(),
        special=_less_mean(embedding.special),
        position=_less_mean(embedding.position),
    )


def _centre_rows(embedding: TokenEmbedding) -> TokenEmbedding:
    positions = None if embedding.positions is None else _less_mean(embedding.positions)
    return dataclasses.replace(embedding, weight=_less_mean(embedding.weight), positions=positions)


def _less_mean(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)


def _bare(norm: Norm, centred: bool) -> Norm:
    """Without weight and bias; of what is centred already, a LayerNorm is an RMSNorm."""
    return Norm(weight=None, bias=None, eps=norm.eps, rms=norm.rms or centred)


def _absorb(linear: Affine, norm: Norm) -> Affine:
    weight = linear.weight if norm.weight is None else linear.weight * norm.weight
    bias = linear.bias
    if norm.bias is not None:
        shift = linear.weight @ norm.bias
        bias = shift if bias is None else bias + shift
    return Affine(weight, bias)


def _writing(linear: Affine, scale: Tensor | None, centred: bool) -> Affine:
    """The projection with LayerScale in it, its outputs' mean taken out where the stream is to be centred."""
    weight, bias = linear.weight, linear.bias
    if scale is not None:
        weight = weight * scale[:, None]
        bias = None if bias is None else bias * scale
    if not centred:
        return Affine(weight, bias)
    weight = weight - weight.mean(dim=0, keepdim=True)
    return Affine(weight, None if bias is None else bias - bias.mean())
