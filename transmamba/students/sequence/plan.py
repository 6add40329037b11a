"""Which tensor of a Transformer of points each of a sequence model's own takes.

What reads points and says values, norms, and attention and MLPs that are kept, as they are. A Mamba-2 layer
in attention's place takes its projections as those of hybrid_lm do [proposal; the roles of MambaInLlama,
arXiv 2408.15237]; a larger state than a head of it has channels takes them into its first numbers. Without
MLPs of its own a model has layers that scan in their place [proposal]: they take the norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ...errors import UserError
from ...subcloning.plan import Dropped, Take, depth_map
from ...views.embeddings import PointEmbedding
from ...views.heads import Readout
from ...views.sublayers import Affine, Attention, Mlp, Sublayer
from ...views.view import Tower, View
from ..hybrid_lm.plan import plan_attention, plan_mixer
from ..reading import take_affine, take_norm
from .layers import Mamba2

if TYPE_CHECKING:
    from .model import SequenceModel

Items = Iterator[Take | Dropped]


def behind(letters: str, kinds: Sequence[str]) -> dict[int, int]:
    """Student layer -> the teacher's sublayer whose place it has. With MLPs of its own these have the MLPs',
    and all others attention's; without, layers have those of all sublayers in order, attention always
    attention's, and a scan before all others none."""
    if "F" in letters:
        found: dict[int, int] = {}
        for kind in ("attention", "mlp"):
            mine = [k for k, letter in enumerate(letters) if (letter == "F") == (kind == "mlp")]
            theirs = [s for s, each in enumerate(kinds) if each == kind]
            places = depth_map(len(mine), len(theirs)) if theirs else []
            found |= {k: theirs[t] for k, t in zip(mine, places, strict=False)}
        return dict(sorted(found.items()))
    first = 1 if len(letters) % 2 and len(letters) > 1 and letters[0] != "A" else 0
    places = depth_map(len(letters) - first, len(kinds))
    found = {k + first: s for k, s in enumerate(places)}
    for k, s in found.items():
        while letters[k] == "A" and kinds[s] != "attention" and s > 0:
            s -= 1
        found[k] = s
    return found


def plan(student: SequenceModel, view: View) -> Items:
    """Everything. Raises UserError for a teacher of other sizes."""
    tower, head = view.towers.get("points"), view.heads.get("points")
    if tower is None or not isinstance(tower.embedding, PointEmbedding) or not isinstance(head, Readout):
        raise UserError("student sequence takes its tensors from a teacher of points; this one is none")
    _check(student, tower, head)
    yield from _plan_ends(student, tower, head)
    places = behind(student.shape.pattern, tower.kinds)
    for k, s in places.items():
        yield from _plan_layer(student, k, tower.names[s], tower.sublayers[s])
    for s, name in enumerate(tower.names):
        if s not in places.values():
            yield Dropped(source=name, why="no layer of the student has its place")


def _check(student: SequenceModel, tower: Tower, head: Readout) -> None:
    mine, theirs = student.shape, tower.embedding
    for name, own, other in (
        ("width", mine.width, tower.width),
        ("inputs", mine.inputs, theirs.weight.shape[1]),
        ("outputs", mine.outputs, len(head.linear.weight)),
    ):
        if own != other:
            raise UserError(f"this sequence's {name} is {own}, the teacher's {other}; make one of its own")
    others = {each.heads for each in tower.sublayers if isinstance(each, Attention)} - {mine.heads}
    if "A" in mine.pattern and others:  # the same matrices, but another function
        other = min(others)
        raise UserError(
            f"student.heads is {mine.heads}, the teacher's {other}, where a layer keeps attention; write "
            f"{other}, or leave it out"
        )


def _plan_ends(student: SequenceModel, tower: Tower, head: Readout) -> Items:
    embedding = tower.embedding
    assert isinstance(embedding, PointEmbedding) and tower.norm is not None, "looked at before"
    yield from take_affine("read_in", "embedding", Affine(embedding.weight, embedding.bias))
    positions = embedding.positions
    if positions is not None and student.positions is None:
        yield Dropped(source="embedding.positions", why="the student has no positions")
    elif positions is not None and student.positions is not None:
        if len(student.positions) > len(positions):
            raise UserError(
                f"this sequence has {len(student.positions)} positions, the teacher {len(positions)}; write "
                "shorter prompts"
            )
        rows = torch.arange(len(student.positions))
        yield Take(target="positions", source="embedding.positions", tensor=positions, index=(rows,))
    yield from take_norm("norm", "norm", tower.norm)
    yield from take_affine("read_out", "head", head.linear)


def _plan_layer(student: SequenceModel, k: int, source: str, sublayer: Sublayer) -> Items:
    into, layer = f"layers.{k}", student.layer(k)
    yield from take_norm(f"{into}.norm", f"{source}.norm", sublayer.norm, k)
    if isinstance(sublayer, Mlp):
        if layer.letter == "F":
            yield from take_affine(f"{into}.mixer.up_proj", f"{source}.up", sublayer.up, k)
            yield from take_affine(f"{into}.mixer.down_proj", f"{source}.down", sublayer.down, k)
        else:
            yield Dropped(source=source, why="a scan has its place, whose projections are drawn", layer=k)
        return
    assert isinstance(sublayer, Attention), "there are two kinds"
    heads = torch.arange(sublayer.heads)[:, None]  # each with its own k and v
    if layer.letter == "A":
        yield from plan_attention(f"{into}.mixer", source, sublayer, heads, None, k)
    elif why := unlike(layer.mixer, sublayer, student.mixers):
        yield Dropped(source=source, why=why, layer=k)
    else:
        yield from plan_mixer(layer.mixer, f"{into}.mixer", source, sublayer, heads, None, k)


def unlike(mixer: torch.nn.Module, attention: Attention, mixers: str) -> str:
    """Why a mixer takes nothing of attention; empty where it does."""
    if mixers == "random":
        return "student.mixers is random"
    if not isinstance(mixer, Mamba2):
        return "only mamba2 has heads, keys and queries as attention has them"
    size = attention.head_width
    fits = mixer.head_dim == size and mixer.states >= size and mixer.groups == mixer.heads
    if not fits or mixer.heads < attention.heads:
        mine = (mixer.head_dim, mixer.states, mixer.groups)
        return (
            f"mamba2 with (head_size, state, groups) {mine} has no place for {attention.heads} heads of "
            f"{size}; leave these out, or write a larger state"
        )
    return ""
