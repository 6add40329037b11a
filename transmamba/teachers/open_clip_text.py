"""open_clip's own Transformer blocks, which both towers have, and its text tower."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..core.layout import Sequence
from ..views.embeddings import TokenEmbedding
from ..views.heads import Embedder, EndOfText, Pool
from ..views.sublayers import Affine, Attention, Mlp, Norm, Sublayer
from ..views.view import Tower
from .check import affine
from .teacher import refuse
from .timm_vit import norm_view

# of a custom block: what the view has no place for, and where it is when it is on
_EXTRAS = {
    "scaled cosine attention": ("attn.logit_scale", (type(None),)),
    "a scale for each head": ("attn.head_scale", (type(None),)),
    "a norm before the output projection": ("attn.ln_inner", (nn.Identity,)),
    "a norm after attention": ("ln_attn", (nn.Identity,)),
    "a norm within the MLP": ("mlp.ln", (nn.Identity,)),
}


def only_runs(text: Any) -> bool:
    """Whether a text tower is of another library (HFTextEncoder), or does what the view cannot say: a class
    token, a mask of padding, blocks with norms of their own."""
    if type(text).__name__ not in ("TextTransformer", "CLIP"):
        return True
    if type(text).__name__ == "CLIP":  # its parts are no module that could be run
        return False
    if text.cls_emb is not None or getattr(text, "use_pad_mask", False):
        return True
    return any(extra_of(block) for block in text.transformer.resblocks)


def extra_of(block: Any) -> str | None:
    """What a block does beside pre-norm attention and MLP, in words."""
    if type(block).__name__ != "CustomResidualAttentionBlock":
        return None
    for what, (place, off) in _EXTRAS.items():
        found: Any = block
        for name in place.split("."):
            found = getattr(found, name)
        if not isinstance(found, off):
            return what
    return None


def text_view(text: Any) -> tuple[Tower, Embedder]:
    """The tower of a TextTransformer, or of a CLIP that holds its parts, and what is read from it.

    Raises UserError for what the view cannot express.
    """
    blocks = text.transformer.resblocks
    embedding = TokenEmbedding(text.token_embedding.weight, text.positional_embedding, absolute=True)
    sublayers = blocks_view(blocks, "transformer.resblocks", causal=text.attn_mask is not None)
    tower = Tower(embedding, sublayers, norm_view(text.ln_final), Sequence())
    projection = text.text_projection
    if isinstance(projection, Tensor):
        projection = Affine(projection.T)
    elif projection is not None:
        projection = affine(projection, "text_projection")
    return tower, Embedder(_pool(text), projection)


def _pool(text: Any) -> Pool:
    how = getattr(text, "text_pool_type", None) or text.pool_type
    if how == "argmax":
        return EndOfText()
    if how == "eos":
        return EndOfText(text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id)
    if how not in ("first", "last"):
        raise refuse("text tower", "it makes no single vector", pool_type=how)
    return str(how)


def blocks_view(blocks: Iterable[Any], place: str, *, causal: bool) -> tuple[Sublayer, ...]:
    """Attention and MLP of each residual block, in order. Raises UserError naming the place."""
    found: list[Sublayer] = []
    for index, block in enumerate(blocks):
        name = f"{place}.{index}"
        kind = type(block).__name__
        if kind not in ("ResidualAttentionBlock", "CustomResidualAttentionBlock"):
            raise refuse(name, "only open_clip's residual blocks are known", kind=kind)
        if (extra := extra_of(block)) is not None:
            raise refuse(name, f"{extra} is not covered", kind=kind)
        found += [_attention(block, name, causal), _mlp(block, name)]
    return tuple(found)


def _attention(block: Any, name: str, causal: bool) -> Attention:
    attn = block.attn
    if not isinstance(attn, nn.MultiheadAttention) and type(attn).__name__ != "Attention":
        kind = f"{type(attn).__module__}.{type(attn).__qualname__}"
        raise refuse(f"{name}.attn", "only plain attention is known; merge adapters first", kind=kind)
    if getattr(attn, "bias_k", None) is not None or getattr(attn, "add_zero_attn", False):
        raise refuse(f"{name}.attn", "keys of its own are not covered")
    weights, bias = attn.in_proj_weight.chunk(3), attn.in_proj_bias
    biases: Any = (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = (Affine(weight, each) for weight, each in zip(weights, biases, strict=True))
    return Attention(
        norm=_norm(block.ln_1, name),
        q=q,
        k=k,
        v=v,
        o=affine(attn.out_proj, f"{name}.attn.out_proj"),
        heads=attn.num_heads,
        causal=causal,
        q_norm=norm_view(attn.ln_q) if hasattr(attn, "ln_q") else None,
        k_norm=norm_view(attn.ln_k) if hasattr(attn, "ln_k") else None,
        scale=getattr(block.ls_1, "gamma", None),
    )


def _mlp(block: Any, name: str) -> Mlp:
    return Mlp(
        norm=_norm(block.ln_2, name),
        up=affine(block.mlp.c_fc, f"{name}.mlp.c_fc"),
        down=affine(block.mlp.c_proj, f"{name}.mlp.c_proj"),
        act=block.mlp.gelu,
        scale=getattr(block.ls_2, "gamma", None),
    )


def _norm(module: nn.Module, name: str) -> Norm:
    norm = norm_view(module)
    if norm is None:
        raise refuse(name, "only pre-norm blocks are known")
    return norm
