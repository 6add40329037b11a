"""How a teacher's tower is read: what is pooled at its end, which activation it has, its linears and norms as
`Take`s, and what of it a student has no place for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..core.layout import Grid
from ..errors import UserError
from ..subcloning.plan import Dropped, Take
from ..views.embeddings import ImageEmbedding
from ..views.heads import AttentionPool, Classifier, Embedder, Pool
from ..views.placed import skeletons
from ..views.sublayers import Affine, Attention, Norm
from ..views.view import Tower, View

# those that teachers have, by timm's names
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu")


def pool_of(view: View) -> Pool | None:
    """What its image head reads; None without one."""
    head = view.heads.get("image")
    if isinstance(head, Classifier):
        return head.readouts[0][0]
    return head.pool if isinstance(head, Embedder) else None


def pooled_token(view: View) -> str:
    """The token that its head reads, or `mean`; of a backbone, and where the head pools by attention, its
    class token, where there is one."""
    how, layout = pool_of(view), view.towers["image"].layout
    if how == "mean" or (isinstance(layout, Grid) and how in dict(layout.special)):
        assert isinstance(how, str), "a token's name"
        return how
    return "cls" if isinstance(layout, Grid) and "cls" in dict(layout.special) else "mean"


def pool_tensors(pool: AttentionPool) -> Iterator[tuple[str, Tensor]]:
    """Its tensors, each with its name in a report."""
    yield "pool.latent", pool.latent
    for name in ("q", "k", "v", "o", "norm", "up", "down", "q_norm", "k_norm"):
        part = getattr(pool, name)
        for kind in ("weight", "bias"):
            if part is not None and getattr(part, kind) is not None:
                yield f"pool.{name}.{kind}", getattr(part, kind)


def pool_dropped(view: View, instead: str) -> Iterator[Dropped]:
    """The tensors of an attention pool that the student replaces by `instead`: its head reads something
    else."""
    pool = pool_of(view)
    if isinstance(pool, AttentionPool):
        for name, _ in pool_tensors(pool):
            yield Dropped(
                source=name, why=f"the student's head reads {instead}, the teacher's an attention pool"
            )


def rope_dropped(attention: Attention, source: str, layer: int) -> Iterator[Dropped]:
    """Rotary positions, which no scan has."""
    if attention.rope is not None:
        yield Dropped(source=f"{source}.rope", why="a scan has an order, no rotary positions", layer=layer)


def suits_layer_norms(tower: Tower) -> bool:
    """Whether LayerNorms do what the tower's norms do: they are LayerNorms, or its stream is centred, as
    folding leaves it."""
    if not tower.sublayers[0].norm.rms:
        return True
    weight = tower.embedding.weight  # of patches (D, C, height, width), of tokens (V, D)
    means = weight.mean(dim=0 if isinstance(tower.embedding, ImageEmbedding) else 1)
    return bool(means.abs().max() < 1e-4 * weight.abs().max())


def check_heads(tower: Tower, student: str) -> None:
    """Raises UserError for a tower whose heads of q share those of k and v."""
    for name, sublayer in zip(tower.names, skeletons(tower.sublayers), strict=True):
        if isinstance(sublayer, Attention) and sublayer.kv_heads not in (None, sublayer.heads):
            raise UserError(
                f"{student} takes values head by head, but the teacher's {name} has {sublayer.heads} heads "
                f"of q on {sublayer.kv_heads} of k and v; choose another teacher"
            )


def activation_name(act: Callable[[Tensor], Tensor], student: str) -> str:
    """timm's name of an activation, found by what it computes. Raises UserError for one without a name."""
    from timm.layers import get_act_fn

    grid = torch.linspace(-4, 4, 65, device="cpu")
    for name in ACTIVATIONS:
        if torch.allclose(act(grid), get_act_fn(name)(grid), atol=1e-6):
            return name
    raise UserError(
        f"{student} copies the teacher's MLPs, but their activation has no name in timm; choose another "
        "student or teacher"
    )


def take_affine(
    target: str,
    source: str,
    affine: Affine,
    layer: int | None = None,
    into: slice | None = None,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> Iterator[Take]:
    """These rows and columns of its weight (all without), and of its bias where it has one; `into` are the
    rows of the target."""
    for name, tensor, index in (("weight", affine.weight, (rows, columns)), ("bias", affine.bias, (rows,))):
        if tensor is not None:
            yield Take(
                target=f"{target}.{name}",
                source=f"{source}.{name}",
                tensor=tensor,
                index=index,
                into=into,
                layer=layer,
            )


def take_norm(
    target: str,
    source: str,
    norm: Norm,
    layer: int | None = None,
    keep: Tensor | None = None,
    scale: float = 1.0,
) -> Iterator[Take]:
    """These channels of its weight and bias (all without), times `scale`: those that it has. One that was
    folded has none: the student's own, of ones, stays."""
    assert norm.weight is not None or scale == 1.0, "nothing carries the scale"
    for name, tensor in (("weight", norm.weight), ("bias", norm.bias)):
        if tensor is not None:
            yield Take(
                target=f"{target}.{name}",
                source=f"{source}.{name}",
                tensor=tensor,
                index=(keep,),
                scale=scale,
                layer=layer,
            )
