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
from ...views.heads import LanguageHead
from ...views.sublayers import Attention, Mlp
from ...views.view import View
from ..reading import rope_dropped, take_affine, take_norm
from .architectures import architecture_of
from .mixer import HybridMixer

if TYPE_CHECKING:
    from .model import HybridStudent

Items = Iterator[Take | Dropped]


def plan(student: HybridStudent, view: View) -> Items:
    """Everything. Raises UserError for a teacher of another width or without a language head."""
    tower, head = view.towers.get("decoder"), view.heads.get("decoder")
    if tower is None or not isinstance(head, LanguageHead) or not isinstance(tower.layout, Text):
        raise UserError("hybrid_lm takes its tensors from a language model; this teacher is none")
    if tower.width != student.width:
        raise UserError(
            f"this hybrid_lm is {student.width} wide, the teacher {tower.width}; make one of its own"
        )
    architecture = architecture_of(student.config)
    yield Take(target="model.embed_tokens.weight", source="embedding.weight", tensor=tower.embedding.weight)
    assert tower.norm is not None, "looked at when the shape was taken"
    yield from take_norm(f"model.{architecture.last_norm}", "norm", tower.norm)
    if not student.config.tie_word_embeddings:
        yield from take_affine("lm_head", "head", head.linear)
    layers: Any = student.model["layers"]
    for k, t in enumerate(depth_map(student.num_layers, len(tower.ends))):
        attention, mlp = tower.sublayers[2 * t], tower.sublayers[2 * t + 1]
        assert isinstance(attention, Attention) and isinstance(mlp, Mlp), "looked at with the shape"
        into, source = f"model.layers.{k}", f"blocks.{t}"
        yield from take_norm(f"{into}.input_layernorm", f"{source}.attention.norm", attention.norm, k)
        if layers[k].scans:
            yield from _plan_mixer(layers[k].mamba, f"{into}.mamba", f"{source}.attention", attention, k)
        else:
            yield from _plan_attention(f"{into}.self_attn", f"{source}.attention", attention, k)
        yield from take_norm(f"{into}.{architecture.mlp_norm}", f"{source}.mlp.norm", mlp.norm, k)
        fused = architecture.fused
        yield from _plan_mlp(f"{into}.{architecture.mlp}", f"{source}.mlp", mlp, k, fused)


def _plan_attention(into: str, source: str, attention: Attention, k: int) -> Items:
    for name in ("q", "k", "v", "o"):
        yield from take_affine(f"{into}.{name}_proj", f"{source}.{name}", getattr(attention, name), k)
    for name, norm in (("q_norm", attention.q_norm), ("k_norm", attention.k_norm)):
        if norm is not None:
            yield from take_norm(f"{into}.{name}", f"{source}.{name}", norm, k)


def _plan_mlp(into: str, source: str, mlp: Mlp, k: int, fused: bool) -> Items:
    assert mlp.gate is not None, "looked at with the shape"
    if not fused:
        for name in ("gate", "up", "down"):
            yield from take_affine(f"{into}.{name}_proj", f"{source}.{name}", getattr(mlp, name), k)
        return
    neurons = len(mlp.up.weight)
    for name, rows in (("gate", slice(neurons)), ("up", slice(neurons, 2 * neurons))):
        yield from take_affine(f"{into}.input_linear", f"{source}.{name}", getattr(mlp, name), k, rows)
    yield from take_affine(f"{into}.output_linear", f"{source}.down", mlp.down, k)


def _plan_mixer(mixer: HybridMixer, into: str, source: str, attention: Attention, k: int) -> Items:
    """Heads beyond the teacher's begin as the first ones again, and out_proj reads nothing of them: they have
    a gradient, and no effect yet."""
    own = torch.arange(mixer.heads) % attention.heads
    shared = own // (attention.heads // (attention.kv_heads or attention.heads))
    at = mixer.inner  # where in the convolution's channels x begins: its rows lack z
    root = attention.head_width**-0.5
    for part, name, heads, scale in (
        ("x", "v", shared, 1.0),
        ("B", "k", shared, 1.0),
        ("C", "q", own, 1.0 if mixer.normed else root),  # the norm's weight has it where there is one
    ):
        affine, rows = getattr(attention, name), mixer.slice_of(part)
        channels = channels_of(heads, attention.head_width)
        yield Take(
            target=f"{into}.in_proj.weight",
            source=f"{source}.{name}.weight",
            tensor=affine.weight,
            index=(channels,),
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
        if norm is not None and norm.weight is not None:
            yield Take(
                target=f"{into}.{part}_norm.weight",
                source=f"{source}.{'q' if part == 'C' else 'k'}_norm.weight",
                tensor=norm.weight,
                scale=scale,
                layer=k,
            )
    real = torch.arange(mixer.inner) < attention.heads * attention.head_width
    yield Take(
        target=f"{into}.out_proj.weight",
        source=f"{source}.o.weight",
        tensor=attention.o.weight,
        index=(None, channels_of(own, attention.head_width)),
        scale=real.float(),
        layer=k,
    )
    if attention.o.bias is not None:
        yield Dropped(source=f"{source}.o.bias", why="a stock Mamba-2 layer's output has no bias", layer=k)
    yield from rope_dropped(attention, source, k)


def channels_of(heads: torch.Tensor, size: int) -> torch.Tensor:
    """The channels of these heads, each `size` of them, in their order."""
    return (heads[:, None] * size + torch.arange(size)).flatten()
