"""A canonical view without LayerNorms and LayerScale: folded into the linears around them, the function kept.

An RMSNorm student then takes the teacher's tensors without a loss.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from ..errors import UserError
from .view import Affine, Block, Norm, View


def fold(view: View) -> View:
    """The same function with plain RMSNorms: LayerScale goes into the projections, every write to the
    residual stream is centred, and each LayerNorm's weight and bias go into the linear that reads it.

    A LayerNorm of a centred vector is an RMSNorm of it, so nothing is lost. Raises UserError for a view that
    already has an RMSNorm or a head without a norm (its stream need not be centred), or a norm right after
    the embedding.
    """
    norms = [view.norm, *(norm for b in view.blocks for norm in (b.attention.norm, b.mlp.norm))]
    if any(norm is None or norm.rms for norm in norms) or view.embedding.norm is not None:
        raise UserError(
            "this teacher cannot be folded: every block and its end need a LayerNorm, its embedding none; "
            "set fold to false"
        )
    assert view.norm is not None, "checked above"
    embedding = dataclasses.replace(
        view.embedding,
        weight=view.embedding.weight - view.embedding.weight.mean(dim=0, keepdim=True),
        bias=None if view.embedding.bias is None else view.embedding.bias - view.embedding.bias.mean(),
        special=view.embedding.special - view.embedding.special.mean(dim=-1, keepdim=True),
        position=view.embedding.position - view.embedding.position.mean(dim=-1, keepdim=True),
    )
    blocks = []
    for block in view.blocks:
        a, m = block.attention, block.mlp
        attention = dataclasses.replace(
            a,
            norm=_bare(a.norm),
            q=_absorb(a.q, a.norm),
            k=_absorb(a.k, a.norm),
            v=_absorb(a.v, a.norm),
            o=_centred(a.o, a.scale),
            scale=None,
        )
        mlp = dataclasses.replace(
            m, norm=_bare(m.norm), up=_absorb(m.up, m.norm), down=_centred(m.down, m.scale), scale=None
        )
        blocks.append(Block(attention, mlp))
    heads = tuple((token, _absorb(head, view.norm)) for token, head in view.heads)
    return dataclasses.replace(
        view, embedding=embedding, blocks=tuple(blocks), norm=_bare(view.norm), heads=heads
    )


def _bare(norm: Norm) -> Norm:
    return Norm(weight=None, bias=None, eps=norm.eps, rms=True)


def _absorb(linear: Affine, norm: Norm) -> Affine:
    weight = linear.weight if norm.weight is None else linear.weight * norm.weight
    bias = linear.bias
    if norm.bias is not None:
        shift = linear.weight @ norm.bias
        bias = shift if bias is None else bias + shift
    return Affine(weight, bias)


def _centred(linear: Affine, scale: Tensor | None) -> Affine:
    weight, bias = linear.weight, linear.bias
    if scale is not None:
        weight = weight * scale[:, None]
        bias = None if bias is None else bias * scale
    weight = weight - weight.mean(dim=0, keepdim=True)
    return Affine(weight, None if bias is None else bias - bias.mean())
