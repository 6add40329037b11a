"""The shape of a `TextMamba`: from a teacher's text tower, and as open_clip's text_cfg tells it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...core.layout import Sequence
from ...errors import UserError, refuse_all
from ...views.embeddings import TokenEmbedding
from ...views.heads import Embedder, EndOfText, Head
from ...views.placed import skeletons
from ...views.sublayers import Attention, Mlp, Norm
from ...views.view import Tower, View
from ..meant import wrong_teacher
from ..reading import ACTIVATIONS, activation_name, check_heads

# open_clip's own fields of text_cfg; all others of a shape stand under `transmamba` there
OPEN_CLIP_FIELDS = ("context_length", "vocab_size", "width", "heads", "layers")


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """What a `TextMamba` is made of. Raises ValueError for sizes of which none can be.

    context_length: positions, the longest text in tokens
    embed_dim:   channels of a text's vector; `width` where there is no projection
    pool_type:   the token that is read, in open_clip's words: `argmax`, the one with the largest number;
        `eos`, the first with the number `eos_id`; `last`
    mlp_width:   neurons of an MLP
    gated_mlp:   act(gate) * up in the place of act(up)
    act:         timm's name of the activation
    layer_scale: a factor for each channel on what mixer and MLP add
    """

    context_length: int
    vocab_size: int
    width: int
    heads: int
    layers: int
    embed_dim: int
    mlp_width: int
    pool_type: Literal["argmax", "eos", "last"] = "argmax"
    eos_id: int | None = None
    proj_type: Literal["linear", "none"] = "linear"
    proj_bias: bool = False
    act: str = "gelu"
    gated_mlp: bool = False
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    layer_scale: bool = False

    def __post_init__(self) -> None:
        sizes = (*OPEN_CLIP_FIELDS, "embed_dim", "mlp_width")
        problems = [
            f"{name} is {getattr(self, name)!r}; write a whole number of at least 1"
            for name in sizes
            if isinstance(getattr(self, name), bool)
            or not isinstance(getattr(self, name), int)
            or getattr(self, name) < 1
        ]
        if not problems and self.width % self.heads:
            problems.append(f"width is {self.width}, no multiple of heads, {self.heads}")
        if not problems and self.proj_type == "none" and self.embed_dim != self.width:
            problems.append(f"embed_dim is {self.embed_dim}, without a projection; write {self.width}")
        words = dict(
            pool_type=("argmax", "eos", "last"),
            proj_type=("linear", "none"),
            norm=("layernorm", "rmsnorm"),
            act=ACTIVATIONS,
        )
        for name, known in words.items():
            if getattr(self, name) not in known:
                problems.append(f"{name} is {getattr(self, name)!r}; write {' or '.join(known)}")
        if (self.pool_type == "eos") != (self.eos_id is not None):
            problems.append(f"eos_id is {self.eos_id} with pool_type {self.pool_type!r}; they go together")
        refuse_all(problems)

    def text_cfg(self) -> dict[str, Any]:
        """open_clip's text_cfg; embed_dim stands beside it in its model_cfg."""
        more = dataclasses.asdict(self)
        del more["embed_dim"]
        return {**{name: more.pop(name) for name in OPEN_CLIP_FIELDS}, "transmamba": more}

    @classmethod
    def of_text_cfg(cls, embed_dim: int, text_cfg: Mapping[str, Any]) -> TextShape:
        """The shape that a text_cfg tells. Raises UserError for what no `TextShape` has."""
        ours = dict(text_cfg["transmamba"])
        known = {field.name for field in dataclasses.fields(cls)} - {*OPEN_CLIP_FIELDS, "embed_dim"}
        if unknown := sorted(ours.keys() - known):
            raise UserError(
                f"text_cfg.transmamba has {', '.join(unknown)}, which this version of transmamba does not "
                f"know; it knows {', '.join(sorted(known))}"
            )
        return cls(embed_dim=embed_dim, **{name: text_cfg[name] for name in OPEN_CLIP_FIELDS}, **ours)


def text_shape(view: View) -> dict[str, Any]:
    """The arguments of the `TextShape` that follows this teacher's text tower; plain numbers and words.

    Raises UserError for a teacher without such a tower, and for what a TextMamba cannot do.
    """
    if "text" in view.opaque:
        raise UserError("this teacher's text tower is only run, for no view expresses it; choose another one")
    if "text" not in view.towers:
        raise wrong_teacher("a text student needs a teacher with a text tower", view)
    tower, head = view.towers["text"], view.heads.get("text")
    embedding, embedder, norm = check_tower(tower, head)
    attention, mlp = skeletons(tower.sublayers)[:2]
    assert isinstance(attention, Attention) and isinstance(mlp, Mlp), "looked at by check_tower"
    assert embedding.positions is not None, "looked at by check_tower"
    projection, pool = embedder.projection, embedder.pool
    return dict(
        context_length=embedding.positions.shape[0],
        vocab_size=embedding.weight.shape[0],
        width=tower.width,
        heads=attention.heads,
        layers=len(tower.ends),
        embed_dim=tower.width if projection is None else projection.weight.shape[0],
        mlp_width=mlp.up.weight.shape[0],
        pool_type=("argmax" if pool.token is None else "eos") if isinstance(pool, EndOfText) else pool,
        eos_id=pool.token if isinstance(pool, EndOfText) else None,
        proj_type="none" if projection is None else "linear",
        proj_bias=projection is not None and projection.bias is not None,
        act=activation_name(mlp.act, "text_mamba"),
        gated_mlp=mlp.gate is not None,
        norm="rmsnorm" if norm.rms else "layernorm",
        norm_eps=norm.eps,
        layer_scale=attention.scale is not None or mlp.scale is not None,
    )


def check_tower(tower: Tower, head: Head | None) -> tuple[TokenEmbedding, Embedder, Norm]:
    """How a text tower begins, how it is read, and its last norm. Raises UserError for what a TextMamba has
    no way to do."""
    embedding = tower.embedding
    if not isinstance(embedding, TokenEmbedding) or not isinstance(tower.layout, Sequence):
        raise UserError("this teacher's text is no stream of its own tokens, which a text_mamba needs")
    if not isinstance(head, Embedder):
        raise UserError("this teacher's text tower makes no single vector, which a text_mamba is for")
    if embedding.positions is None or not embedding.absolute:
        raise UserError(
            "text_mamba adds a learnt vector for each place in the row, padding too; this teacher has "
            + ("none" if embedding.positions is None else "one for each place in the text")
        )
    if tower.kinds != ("attention", "mlp") * (len(tower.kinds) // 2) or not tower.kinds:
        raise UserError(f"a text_mamba has blocks of attention and MLP; the teacher {', '.join(tower.kinds)}")
    if not isinstance(head.pool, EndOfText) and head.pool != "last":
        how = head.pool if isinstance(head.pool, str) else type(head.pool).__name__
        raise UserError(
            f"the teacher's text is read by {how!r}; a causal scan is read at the end of the text or the row"
        )
    check_heads(tower, "text_mamba")
    return embedding, head, _norm_of_all(tower, head)


def _norm_of_all(tower: Tower, head: Embedder) -> Norm:
    """The last norm, on the stream or on the pooled token, where all others have its kind and epsilon."""
    last = tower.norm if head.norm is None else head.norm
    norms = [sublayer.norm for sublayer in skeletons(tower.sublayers)]
    if last is None or (tower.norm is not None and head.norm is not None):
        raise UserError("text_mamba has one norm between its blocks and its projection, the teacher not")
    if len(found := {(norm.rms, norm.eps) for norm in [last, *norms]}) > 1:
        raise UserError(f"text_mamba has norms of one kind and epsilon, the teacher {sorted(found)}")
    return last
