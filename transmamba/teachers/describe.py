"""A view in words and numbers: what `transmamba inspect` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.layout import Grid
from ..views.embeddings import ImageEmbedding, PointEmbedding, Spliced, TokenEmbedding
from ..views.heads import AttentionPool, Classifier, Embedder, EndOfText, Head, LanguageHead, Pool, Readout
from ..views.placed import skeletons
from ..views.sublayers import Affine, Attention, Mlp, Norm, Sublayer
from ..views.view import Tower, View

_NONE = "none"
# what a decoder reads whose words have a picture's tokens among them
SPLICED = "words with an image's tokens"
# the head of a tower that a decoder reads
CONNECTOR = {"kind": "connector"}


def towers_of(view: View) -> dict[str, dict[str, Any]]:
    """By tower: its embedding, its sublayers in runs of blocks alike, its last norm and its head."""
    found = {name: tower_in_words(tower, view.heads.get(name)) for name, tower in view.towers.items()}
    for tower in view.towers.values():
        if isinstance(tower.embedding, Spliced):
            found[tower.embedding.source]["head"] = dict(CONNECTOR)
    for name, opaque in view.opaque.items():
        found[name] = {"reads": opaque.reads, "opaque": type(opaque.module).__name__}
    return found


def tower_in_words(tower: Tower, head: Head | None) -> dict[str, Any]:
    """Of one tower."""
    blocks, begin, sublayers = [], 0, skeletons(tower.sublayers)
    for end in tower.ends:
        blocks.append([_sublayer(sublayer) for sublayer in sublayers[begin : end + 1]])
        begin = end + 1
    return {
        "reads": tower.embedding.reads,
        "width": tower.width,
        "embedding": _embedding(tower),
        "blocks": len(blocks),
        "sublayers": runs_of(blocks),
        "norm": _norm(tower.norm),
        "head": _head(head),
    }


def runs_of(blocks: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Consecutive blocks that are alike as one: the first and the last of them, and their sublayers."""
    runs: list[dict[str, Any]] = []
    for t, block in enumerate(blocks):
        if runs and runs[-1]["of"] == block:
            runs[-1]["last"] = t
        else:
            runs.append({"first": t, "last": t, "of": block})
    return runs


def _sublayer(sublayer: Sublayer) -> dict[str, Any]:
    common = {"kind": sublayer.kind, "norm": _norm(sublayer.norm), "layer_scale": sublayer.scale is not None}
    if isinstance(sublayer, Attention):
        return {**common, **_attention(sublayer)}
    assert isinstance(sublayer, Mlp), "there are two kinds"
    gate = sublayer.gate is not None
    linears = [sublayer.up, sublayer.down, *([sublayer.gate] if sublayer.gate else [])]
    return {
        **common,
        "neurons": sublayer.up.weight.shape[0],
        "gated": gate,
        "activation": activation_in_words(sublayer.act),
        "biases": _biases(dict(zip(("up", "down", "gate"), linears, strict=False))),
    }


def _attention(attention: Attention) -> dict[str, Any]:
    named = {"q": attention.q, "k": attention.k, "v": attention.v, "o": attention.o}
    return {
        "heads": attention.heads,
        "kv_heads": attention.kv_heads or attention.heads,
        "head_size": attention.head_width,
        "rope": _NONE if attention.rope is None else attention.rope.kind,
        "qk_norm": _norm(attention.q_norm),
        "causal": attention.causal,
        "window": attention.window,
        "biases": _biases(named),
    }


def _biases(linears: dict[str, Affine]) -> str:
    having = [name for name, linear in linears.items() if linear.bias is not None]
    return "all" if len(having) == len(linears) else " ".join(having) or _NONE


def _norm(norm: Norm | None) -> str:
    return _NONE if norm is None else f"{'RMSNorm' if norm.rms else 'LayerNorm'} {norm.eps:g}"


def activation_in_words(act: Any) -> str:
    """`gelu` of torch's function, `GELU (tanh)` of a module, whatever a class is called."""
    if hasattr(act, "approximate") and act.approximate != _NONE:
        return f"{type(act).__name__} ({act.approximate})"
    return getattr(act, "__name__", type(act).__name__)


def _embedding(tower: Tower) -> dict[str, Any]:
    embedding, layout = tower.embedding, tower.layout
    if isinstance(embedding, ImageEmbedding):
        assert isinstance(layout, Grid), "patches lie in a grid"
        return {
            "kind": "patches",
            "patch": list(embedding.weight.shape[-2:]),
            "channels": embedding.weight.shape[1],
            "grid": list(layout.grid),
            "special": [name for name, _ in layout.special],
            "positions": "learnt" if _learnt(embedding.position) else _NONE,
            "norm": _norm(embedding.norm),
        }
    if isinstance(embedding, TokenEmbedding):
        positions = embedding.positions
        return {
            "kind": "words",
            "vocabulary": embedding.weight.shape[0],
            "positions": _NONE if positions is None else f"learnt, {len(positions)}",
            "scale": embedding.scale,
        }
    if isinstance(embedding, PointEmbedding):
        positions = embedding.positions
        return {
            "kind": "points",
            "numbers": embedding.weight.shape[1],
            "positions": _NONE if positions is None else f"learnt, {len(positions)}",
        }
    assert isinstance(embedding, Spliced), "there are four kinds"
    return {
        "kind": SPLICED,
        "vocabulary": embedding.weight.shape[0],
        "place": embedding.token,
    }


def _learnt(position: Any) -> bool:
    return bool(position.is_meta or position.any())


def _head(head: Head | None) -> dict[str, Any] | None:
    if isinstance(head, Classifier):
        pools = [_pool(how) for how, _ in head.readouts]
        return {"kind": "classifier", "classes": head.num_classes, "pool": pools, "norm": _norm(head.norm)}
    if isinstance(head, LanguageHead):
        return {"kind": "next word", "vocabulary": head.vocabulary, "tied": head.tied}
    if isinstance(head, Readout):
        return {"kind": "values", "size": head.linear.weight.shape[0]}
    if isinstance(head, Embedder):
        size = None if head.projection is None else head.projection.weight.shape[0]
        return {"kind": "embedding", "size": size, "pool": [_pool(head.pool)]}
    return None


def _pool(how: Pool) -> str:
    if isinstance(how, EndOfText):
        return "end of text"
    return "attention" if isinstance(how, AttentionPool) else how
