"""Which canonical tensor of a dual encoder's view each tensor of an open_clip model takes, beside the image
tower's, which that tower's own plan says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...subcloning.plan import Take
from ...subcloning.selection import multiplicity
from ...views.embeddings import TokenEmbedding
from ...views.heads import Embedder, Head
from ...views.sublayers import Affine, Attention, Mlp, Norm
from ...views.view import Tower, View
from ..reading import suits_layer_norms


def plan_projection(visual: Any, view: View, keep: Tensor) -> Iterator[Take]:
    """From the pooled token to the embedding; `keep` are the coordinates that the student's stream has."""
    head, width = view.heads["image"], view.towers["image"].width
    assert isinstance(head, Embedder), "a dual encoder's"
    if not hasattr(visual.head, "proj"):
        return
    projection = head.projection
    if projection is None:  # the teacher's pooled token is its embedding: each coordinate is put in its place
        projection = Affine(torch.eye(width, device=keep.device))
    yield Take(
        target="visual.head.proj.weight",
        source="head.projection.weight",
        tensor=projection.weight,
        index=(None, keep),
        scale=multiplicity(keep, width),
    )
    if projection.bias is not None:
        yield Take(target="visual.head.proj.bias", source="head.projection.bias", tensor=projection.bias)


def plan_scalars(view: View) -> Iterator[Take]:
    """The scale of similarities, whose logarithm is learnt, and their bias."""
    scale = view.scalars["scale"].reshape(())
    yield Take(target="logit_scale", source="scalars.scale", tensor=scale.log(), made="copied")
    if "bias" in view.scalars:
        yield Take(target="logit_bias", source="scalars.bias", tensor=view.scalars["bias"].reshape(()))


def plan_text(text: nn.Module, tower: Tower, head: Head) -> Iterator[Take]:
    """open_clip's TextTransformer, tensor by tensor as it is. `text_projection` is (width, embed_dim) there,
    a linear where it has a bias."""
    embedding = tower.embedding
    assert isinstance(embedding, TokenEmbedding) and isinstance(head, Embedder), "a text tower"
    yield _take("token_embedding.weight", "embedding.weight", embedding.weight)
    assert embedding.positions is not None, "seen when the shape was taken"
    yield _take("positional_embedding", "embedding.positions", embedding.positions)
    if not suits_layer_norms(tower):
        raise UserError(
            "the teacher's text tower has RMSNorms, open_clip's LayerNorms; choose another teacher"
        )
    for k in range(len(tower.ends)):
        attention, mlp = tower.sublayers[2 * k], tower.sublayers[2 * k + 1]
        assert isinstance(attention, Attention) and isinstance(mlp, Mlp), "a Transformer's block"
        yield from _plan_block(k, attention, mlp)
    if tower.norm is not None:
        yield from _norm("ln_final", "norm", tower.norm, tower.width)
    if head.projection is None:
        return
    if isinstance(getattr(text, "text_projection", None), nn.Linear):
        yield from _affine("text_projection", "projection", head.projection)
    else:
        yield _take("text_projection", "projection.weight", head.projection.weight.T)


def _plan_block(k: int, attention: Attention, mlp: Mlp) -> Iterator[Take]:
    into, source = f"transformer.resblocks.{k}", f"blocks.{k}"
    width = attention.q.weight.shape[1]
    yield from _norm(f"{into}.ln_1", f"{source}.attention.norm", attention.norm, width)
    for third, name in enumerate(("q", "k", "v")):
        projection: Affine = getattr(attention, name)
        rows = slice(third * width, (third + 1) * width)
        for part, tensor in (("weight", projection.weight), ("bias", projection.bias)):
            if tensor is None:  # none is a bias of 0
                tensor = projection.weight.new_zeros(width)
            yield _take(f"{into}.attn.in_proj_{part}", f"{source}.attention.{name}.{part}", tensor, rows)
    yield from _affine(f"{into}.attn.out_proj", f"{source}.attention.o", attention.o)
    yield from _norm(f"{into}.ln_2", f"{source}.mlp.norm", mlp.norm, width)
    yield from _affine(f"{into}.mlp.c_fc", f"{source}.mlp.up", mlp.up)
    yield from _affine(f"{into}.mlp.c_proj", f"{source}.mlp.down", mlp.down)
    for target, scale in (("ls_1", attention.scale), ("ls_2", mlp.scale)):
        if scale is not None:
            yield _take(f"{into}.{target}.gamma", f"{source}.{target}", scale)


def _take(target: str, source: str, tensor: Tensor, into: slice | None = None) -> Take:
    """Without a layer: the text tower is kept whole, however many layers of the image tower are cloned."""
    return Take(target=f"text.{target}", source=f"text.{source}", tensor=tensor, into=into)


def _affine(target: str, source: str, affine: Affine) -> Iterator[Take]:
    bias = affine.weight.new_zeros(len(affine.weight)) if affine.bias is None else affine.bias
    yield _take(f"{target}.weight", f"{source}.weight", affine.weight)
    yield _take(f"{target}.bias", f"{source}.bias", bias)


def _norm(target: str, source: str, norm: Norm, width: int) -> Iterator[Take]:
    """A LayerNorm's; one that has no weights (folded) multiplies by 1 and adds 0."""
    for part, tensor, neutral in (("weight", norm.weight, 1.0), ("bias", norm.bias, 0.0)):
        yield _take(
            f"{target}.{part}",
            f"{source}.{part}",
            torch.full((width,), neutral) if tensor is None else tensor,
        )
