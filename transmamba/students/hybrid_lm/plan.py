"""Which canonical tensor each of a hybrid's own takes.

Attention that is kept, MLPs, norms, embeddings and head as they are. In a Mamba-2 layer x takes the values'
place, B the keys', C the queries' over the root of their size, out_proj the output projection's; heads of k
and v that several of q share are repeated for each [proposal; the same roles as in MambaInLlama, arXiv
2408.15237]. Where keys and queries are normalised, B and C are by the same norms. Rotary positions have no
place there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ...core.layout import Sequence as Text
from ...errors import UserError
from ...subcloning.plan import Dropped, Take, depth_map
from ...subcloning.selection import Selection
from ...views.heads import LanguageHead
from ...views.sublayers import Affine, Attention, Mlp
from ...views.view import Tower, View
from ..reading import rope_dropped, take_affine, take_norm
from .architectures import architecture_of
from .mixer import HybridMixer
from .upcycling import plan_experts

if TYPE_CHECKING:
    from .model import HybridStudent

Items = Iterator[Take | Dropped]
Index = torch.Tensor | None


def plan(student: HybridStudent, view: View, select: Selection | None) -> Items:
    """Everything. Raises UserError for a teacher that is narrower, or without a language head.

    select: which coordinates a narrower student keeps; None for evenly spaced ones
    """
    if {"mamba", "switch_mamba"} & set(student.kinds):
        raise UserError("student moe_mamba takes no weights of a teacher; write init: null")
    tower, head = view.towers.get("decoder"), view.heads.get("decoder")
    if tower is None or not isinstance(head, LanguageHead) or not isinstance(tower.layout, Text):
        raise UserError("hybrid_lm takes its tensors from a language model; this teacher is none")
    if tower.width < student.width:
        raise UserError(
            f"this hybrid_lm is {student.width} wide, the teacher {tower.width}; make one of its own"
        )
    select = select or Selection(tower.width, student.width)
    keep = None if tower.width == student.width else select.residual
    architecture = architecture_of(student.config)
    yield from _plan_ends(student, tower, head, keep)
    layers: Any = student.model["layers"]
    for k, t in enumerate(depth_map(student.num_layers, len(tower.ends))):
        attention, mlp = tower.sublayers[2 * t], tower.sublayers[2 * t + 1]
        assert isinstance(attention, Attention) and isinstance(mlp, Mlp), "looked at with the shape"
        into, source, layer = f"model.layers.{k}", f"blocks.{t}", layers[k]
        yield from take_norm(f"{into}.input_layernorm", f"{source}.attention.norm", attention.norm, k, keep)
        heads = _heads(student, attention, select, 2 * t)
        if layer.scans and student.mixers == "random":
            yield from _random(f"{source}.attention", attention, k)
        elif layer.scans:
            yield from plan_mixer(
                layer.mamba, f"{into}.mamba", f"{source}.attention", attention, heads, keep, k
            )
        else:
            yield from plan_attention(f"{into}.self_attn", f"{source}.attention", attention, heads, keep, k)
        yield from take_norm(f"{into}.{architecture.mlp_norm}", f"{source}.mlp.norm", mlp.norm, k, keep)
        full = len(mlp.up.weight)
        rows = None if layer.neurons == full else select.inner(2 * t + 1, full, layer.neurons)
        if layer.routes:
            name, count = f"{into}.{architecture.experts}", layer.routers()[""]
            yield from plan_experts(name, f"{source}.mlp", mlp, rows, keep, k, count, student.redrawn)
            continue
        fused = architecture.fused
        yield from _plan_mlp(f"{into}.{architecture.mlp}", f"{source}.mlp", mlp, rows, keep, k, fused)


def _plan_ends(student: HybridStudent, tower: Tower, head: LanguageHead, keep: Index) -> Items:
    """Embedding, last norm and head. What reads the stream of a narrower student is scaled, as everywhere;
    where the head is the embedding, which is not, the norm before it."""
    words, tied = tower.embedding.weight, student.config.tie_word_embeddings
    yield Take(
        target="model.embed_tokens.weight",
        source="embedding.weight",
        tensor=words if keep is None else words[:, keep.to(words.device)],
        made="copied" if keep is None else "sliced",
    )
    assert tower.norm is not None, "looked at when the shape was taken"
    scale = (tower.width / student.width) ** 0.5 if tied else 1.0
    yield from take_norm(
        f"model.{architecture_of(student.config).last_norm}", "norm", tower.norm, keep=keep, scale=scale
    )
    if not tied:
        yield from take_affine("lm_head", "head", head.linear, columns=keep)


def _heads(student: HybridStudent, attention: Attention, select: Selection, s: int) -> torch.Tensor:
    """Which of a sublayer's heads a layer has: (heads of k and v, heads of q on each)."""
    groups = attention.kv_heads or attention.heads
    count = student.config.num_key_value_heads
    each = student.config.num_attention_heads // count
    return select.heads(s, groups, attention.heads // groups, count, each)


def plan_attention(
    into: str, source: str, attention: Attention, heads: torch.Tensor, keep: Index, k: int
) -> Items:
    q: Index = None
    shared: Index = None
    if heads.numel() < attention.heads:
        q = channels_of(heads.flatten(), attention.head_width)
    groups = attention.kv_heads or attention.heads
    if len(heads) < groups:
        shared = channels_of(heads[:, 0] // (attention.heads // groups), attention.head_width)
    for name, rows, columns in (("q", q, keep), ("k", shared, keep), ("v", shared, keep), ("o", keep, q)):
        affine: Affine = getattr(attention, name)
        yield from take_affine(
            f"{into}.{name}_proj", f"{source}.{name}", affine, k, rows=rows, columns=columns
        )
    for name, norm in (("q_norm", attention.q_norm), ("k_norm", attention.k_norm)):
        if norm is not None:
            yield from take_norm(f"{into}.{name}", f"{source}.{name}", norm, k)


def _plan_mlp(into: str, source: str, mlp: Mlp, rows: Index, keep: Index, k: int, fused: bool) -> Items:
    assert mlp.gate is not None, "looked at with the shape"
    if not fused:
        yield from take_affine(f"{into}.gate_proj", f"{source}.gate", mlp.gate, k, rows=rows, columns=keep)
        yield from take_affine(f"{into}.up_proj", f"{source}.up", mlp.up, k, rows=rows, columns=keep)
        yield from take_affine(f"{into}.down_proj", f"{source}.down", mlp.down, k, rows=keep, columns=rows)
        return
    neurons = len(mlp.up.weight) if rows is None else len(rows)
    for name, place in (("gate", slice(neurons)), ("up", slice(neurons, 2 * neurons))):
        affine: Affine = getattr(mlp, name)
        yield from take_affine(f"{into}.input_linear", f"{source}.{name}", affine, k, place, rows, keep)
    yield from take_affine(f"{into}.output_linear", f"{source}.down", mlp.down, k, rows=keep, columns=rows)


def plan_mixer(
    mixer: HybridMixer,
    into: str,
    source: str,
    attention: Attention,
    heads: torch.Tensor,
    keep: Index,
    k: int,
) -> Items:
    """Heads beyond the attention's begin as the first ones again, and out_proj reads nothing of them: they
    have a gradient, and no effect yet. Of a state larger than a head of attention, the first numbers take the
    keys and queries; the others stay as they began."""
    own = heads.flatten()[torch.arange(mixer.heads) % heads.numel()]
    shared = own // (attention.heads // (attention.kv_heads or attention.heads))
    at = mixer.inner  # where in the convolution's channels x begins: its rows lack z
    root = attention.head_width**-0.5
    for part, name, chosen, scale in (
        ("x", "v", shared, 1.0),
        ("B", "k", shared, 1.0),
        ("C", "q", own, 1.0 if mixer.normed else root),  # the norm's weight has it where there is one
    ):
        affine = getattr(attention, name)
        for which, rows in _places(mixer, part, chosen, attention.head_width):
            channels = channels_of(which, attention.head_width)
            yield Take(
                target=f"{into}.in_proj.weight",
                source=f"{source}.{name}.weight",
                tensor=affine.weight,
                index=(channels, keep),
                into=rows,
                scale=scale,
                layer=k,
            )
            if affine.bias is not None:
                yield Take(
                    target=f"{into}.conv1d.bias",
                    source=f"{source}.{name}.bias",
                    tensor=affine.bias,
                    index=(channels,),
                    into=slice(rows.start - at, rows.stop - at),
                    scale=mixer.tap * scale,
                    layer=k,
                )
    for part, norm, scale in (("B", attention.k_norm, 1.0), ("C", attention.q_norm, root)):
        if norm is not None:
            target, of = f"{into}.{part}_norm", f"{source}.{'q' if part == 'C' else 'k'}_norm"
            yield from take_norm(target, of, norm, k, scale=scale)
    real = torch.arange(mixer.inner) < heads.numel() * attention.head_width
    yield Take(
        target=f"{into}.out_proj.weight",
        source=f"{source}.o.weight",
        tensor=attention.o.weight,
        index=(keep, channels_of(own, attention.head_width)),
        scale=real.float(),
        layer=k,
    )
    if attention.o.bias is not None:
        yield Dropped(source=f"{source}.o.bias", why="a stock Mamba-2 layer's output has no bias", layer=k)
    yield from rope_dropped(attention, source, k)


def _places(
    mixer: HybridMixer, part: str, heads: torch.Tensor, size: int
) -> Iterator[tuple[torch.Tensor, slice]]:
    """Which of attention's heads, each `size` channels, which rows of in_proj take: all of a part's at once,
    or where its states are more than these channels each head's first ones."""
    rows = mixer.slice_of(part)
    if part == "x" or mixer.states == size:
        yield heads, rows
        return
    for place, head in enumerate(heads.split(1)):
        start = rows.start + place * mixer.states
        yield head, slice(start, start + size)


def _random(source: str, attention: Attention, k: int) -> Items:
    """What a mixer that is drawn leaves of attention."""
    for name in ("q", "k", "v", "o", "q_norm", "k_norm"):
        part = getattr(attention, name)
        for kind in ("weight", "bias"):
            if part is not None and getattr(part, kind) is not None:
                yield Dropped(source=f"{source}.{name}.{kind}", why="student.mixers is random", layer=k)
    yield from rope_dropped(attention, source, k)


def channels_of(heads: torch.Tensor, size: int) -> torch.Tensor:
    """The channels of these heads, each `size` of them, in their order."""
    return (heads[:, None] * size + torch.arange(size)).flatten()
