"""Which canonical tensor each of a TextMamba's own takes, as it is: it has its teacher's width and MLPs.

q, k, v and o of attention become C, B, x and the output projection of the mixer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ...errors import UserError
from ...subcloning.plan import Dropped, Take, depth_map
from ...views.embeddings import TokenEmbedding
from ...views.heads import Embedder, EndOfText
from ...views.sublayers import Affine, Attention, Mlp, Norm
from ...views.view import Tower
from ..reading import rope_dropped, take_affine, take_norm
from .shape import TextShape, check_tower

if TYPE_CHECKING:
    from .model import TextMamba

Items = Iterator[Take | Dropped]


def plan(student: TextMamba, tower: Tower, head: Embedder, prefix: str) -> Items:
    """Everything; `prefix` goes before each target.

    Raises UserError for a tower of another width, and where a tensor has no counterpart.
    """
    embedding, embedder, norm = check_tower(tower, head)
    _check_same(student.shape, tower, embedding, norm)
    yield from _plan_ends(student.shape, embedding, embedder, norm, prefix)
    for k, t in enumerate(depth_map(student.num_layers, len(tower.ends))):
        yield from _plan_block(student.shape, tower, k, t, prefix)


def _check_same(shape: TextShape, tower: Tower, embedding: TokenEmbedding, norm: Norm) -> None:
    """Raises UserError where the student's shape is not the teacher's but for its depth and positions."""
    if tower.width != shape.width:
        raise UserError(
            f"text_mamba keeps the teacher's width {tower.width}, but the student is {shape.width} wide; "
            "narrower text towers are not made yet: leave its width out, and it follows the teacher"
        )
    if embedding.weight.shape[0] != shape.vocab_size:
        raise UserError(
            f"the teacher has {embedding.weight.shape[0]} tokens, text_mamba {shape.vocab_size}; "
            "use the teacher's tokenizer"
        )
    assert embedding.positions is not None, "looked at by check_tower"
    if shape.context_length > len(embedding.positions):
        raise UserError(
            f"text_mamba has {shape.context_length} positions, the teacher {len(embedding.positions)}; "
            "set context_length to at most as many"
        )
    if (norm.rms, norm.eps) != (shape.norm == "rmsnorm", shape.norm_eps):
        kind = "RMSNorms" if norm.rms else "LayerNorms"
        raise UserError(
            f"the teacher has {kind} of epsilon {norm.eps}, text_mamba {shape.norm} of {shape.norm_eps}; "
            "leave its norm out, and it follows the teacher"
        )


def _plan_ends(shape: TextShape, embedding: TokenEmbedding, head: Embedder, norm: Norm, prefix: str) -> Items:
    """Token table, positions, final norm and projection."""
    rows, positions = torch.arange(shape.context_length), embedding.positions
    assert positions is not None, "looked at by check_tower"
    yield Take(
        target=f"{prefix}token_embedding.weight",
        source="embedding.weight",
        tensor=embedding.weight,
        scale=embedding.scale,
    )
    yield Take(
        target=f"{prefix}positional_embedding",
        source="embedding.positions",
        tensor=positions,
        index=(rows,),
    )
    yield from take_norm(f"{prefix}norm", "norm", norm)
    _check_pool(shape, head)
    if (head.projection is None) != (shape.proj_type == "none"):
        raise UserError(
            f"text_mamba has proj_type {shape.proj_type!r}, the teacher "
            + ("no projection" if head.projection is None else "a projection")
        )
    if head.projection is not None:
        yield from take_affine(f"{prefix}text_projection", "head.projection", head.projection)


def _check_pool(shape: TextShape, head: Embedder) -> None:
    """Raises UserError where the student reads another token than the teacher."""
    pool = head.pool
    theirs = (
        (("argmax" if pool.token is None else "eos"), pool.token) if isinstance(pool, EndOfText) else None
    )
    theirs = theirs or ("last", None)
    if theirs != (shape.pool_type, shape.eos_id):
        raise UserError(
            f"the teacher's text is read by {theirs[0]!r} ({theirs[1]}), text_mamba's by "
            f"{shape.pool_type!r} ({shape.eos_id}); leave pool_type out, and it follows the teacher"
        )


def _plan_block(shape: TextShape, tower: Tower, k: int, t: int, prefix: str) -> Items:
    """Block k from the teacher's block t."""
    into, source = f"{prefix}blocks.{k}", f"blocks.{t}"
    attention, mlp = tower.sublayers[tower.ends[t] - 1], tower.sublayers[tower.ends[t]]
    assert isinstance(attention, Attention) and isinstance(mlp, Mlp), "looked at by check_tower"
    _check_block(shape, attention, mlp, source)
    yield from rope_dropped(attention, f"{source}.attention", k)
    yield from take_norm(f"{into}.norm1", f"{source}.attention.norm", attention.norm, k)
    yield from take_norm(f"{into}.norm2", f"{source}.mlp.norm", mlp.norm, k)
    for third, name in enumerate(("q", "k", "v")):
        rows = slice(third * shape.width, (third + 1) * shape.width)
        affine: Affine = getattr(attention, name)
        yield from take_affine(f"{into}.attn.qkv", f"{source}.attention.{name}", affine, k, rows)
    yield from take_affine(f"{into}.attn.proj", f"{source}.attention.o", attention.o, k)
    yield from take_affine(
        f"{into}.mlp.fc1" if mlp.gate is None else f"{into}.mlp.fc1_x", f"{source}.mlp.up", mlp.up, k
    )
    if mlp.gate is not None:
        yield from take_affine(f"{into}.mlp.fc1_g", f"{source}.mlp.gate", mlp.gate, k)
    yield from take_affine(f"{into}.mlp.fc2", f"{source}.mlp.down", mlp.down, k)
    for target, name, scale in (("ls1", "attention", attention.scale), ("ls2", "mlp", mlp.scale)):
        if scale is not None:
            yield Take(
                target=f"{into}.{target}.gamma", source=f"{source}.{name}.scale", tensor=scale, layer=k
            )
    for name, norm in (("q_norm", attention.q_norm), ("k_norm", attention.k_norm)):
        if norm is not None:
            yield Dropped(
                source=f"{source}.attention.{name}", why="an SSD mixer has no query and key norms", layer=k
            )


def _check_block(shape: TextShape, attention: Attention, mlp: Mlp, source: str) -> None:
    """Raises UserError for heads, neurons or a gate that the student's blocks do not have."""
    channels = attention.q.weight.shape[0]
    if attention.heads != shape.heads or channels != shape.width:
        raise UserError(
            f"{source} of the teacher has {attention.heads} heads of {attention.head_width} channels, "
            f"text_mamba {shape.heads} of {shape.width // shape.heads}; leave heads out, or choose another "
            "teacher"
        )
    theirs, mine = (mlp.up.weight.shape[0], mlp.gate is not None), (shape.mlp_width, shape.gated_mlp)
    if theirs != mine:
        raise UserError(
            f"{source} of the teacher has an MLP of (neurons, gated) {theirs}, text_mamba of {mine}; leave "
            "mlp_width and gated_mlp out, and they follow the teacher"
        )
