"""What open_clip is told of a student: `model_cfg`, after a teacher's view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.layout import Sequence
from ...core.tower import StudentSpec
from ...errors import UserError
from ...views.embeddings import TokenEmbedding
from ...views.heads import Embedder, EndOfText
from ...views.sublayers import Attention, Mlp
from ...views.view import Tower, View
from ..image_part import ASKED, check_part, part_arguments, try_out
from ..meant import wrong_teacher
from ..reading import activation_name, suits_layer_norms
from ..shape_tag import named
from ..text_mamba.shape import TextShape, text_shape

if TYPE_CHECKING:
    from .names import Clip, ImageTower, TextTower

_RESIZED = " (open_clip's force_image_size takes a finished student to another size)"


def model_cfg(config: Clip, spec: StudentSpec) -> dict[str, Any]:
    """Of open_clip's CustomTextCLIP. Raises UserError for a teacher that is no dual encoder, and for a tower
    that open_clip's cannot be."""
    view: View = spec.view
    heads = [view.heads.get("image"), view.heads.get("text")]
    if not isinstance(heads[0], Embedder):
        raise wrong_teacher("student clip needs a teacher that embeds images, such as a CLIP", view)
    if not isinstance(heads[1], Embedder) and "text" not in view.opaque:
        raise wrong_teacher("student clip needs a teacher of images and texts", view)
    embed_dim = _embed_dim(view)
    text, quick = _text_cfg(config.text, view)
    found: dict[str, Any] = {
        "embed_dim": embed_dim,
        "vision_cfg": _vision_cfg(config.image, spec, embed_dim),
        "text_cfg": text,
        "custom_text": True,
    }
    found |= {"quick_gelu": True} if quick else {}
    return found | ({"init_logit_bias": 0.0} if "bias" in view.scalars else {})


def _embed_dim(view: View) -> int:
    head = view.heads["image"]
    assert isinstance(head, Embedder), "the caller has looked"
    return view.towers["image"].width if head.projection is None else head.projection.weight.shape[0]


def _vision_cfg(config: ImageTower, spec: StudentSpec, embed_dim: int) -> dict[str, Any]:
    """A tower that timm makes, its shape in its name's tag."""
    check_part(config, spec, "clip", _RESIZED)
    _check_pool(config)
    name, arguments = "vim_shaped" if config.kind == "vim" else "ssd_vit_shaped", part_arguments(config, spec)
    try_out(name, arguments)
    head = spec.view.heads["image"]
    # without a projection the teacher's width is its embedding's; a student of another needs one
    projects = head.projection is not None or arguments["embed_dim"] != embed_dim
    bias = head.projection is not None and head.projection.bias is not None
    return {
        "timm_model_name": named(name, arguments),
        "timm_model_pretrained": False,
        "timm_pool": arguments["global_pool"],
        "timm_proj": "linear" if projects else "none",
        "timm_proj_bias": bias,
        "image_size": arguments["img_size"],
    }


def _check_pool(config: ImageTower) -> None:
    """Raises UserError for a pooling that no tower of a clip has."""
    kwargs, pools = config.kwargs, ("token", "avg") if config.kind == "vim" else ("token", "avg", "map")
    if "global_pool" in kwargs and kwargs["global_pool"] not in pools:
        raise UserError(
            f"{ASKED.at}.kwargs.global_pool is {kwargs['global_pool']!r}; of a {config.kind} write "
            f"{' or '.join(pools)}"
        )


def _text_cfg(config: TextTower, view: View) -> tuple[dict[str, Any], bool]:
    """(text_cfg, whether its activation is QuickGELU, which model_cfg says for both towers)."""
    if "text" in view.opaque:
        known = view.opaque["text"].config
        if config.kind != "kept":
            raise UserError("student.text.kind mamba2: the teacher's text tower is run, not read; keep it")
        if known is None:
            raise UserError("the teacher does not say what rebuilds its text tower; load it by its folder")
        # its weights are the teacher's, or nobody's: none are fetched for it
        return {**known, "hf_model_pretrained": False}, False
    tower, head = view.towers["text"], view.heads["text"]
    assert isinstance(head, Embedder), "the caller has looked"
    if config.kind == "mamba2":
        return _converted(config, view), False
    return _kept(tower, head)


def _converted(config: TextTower, view: View) -> dict[str, Any]:
    """Of our text tower. Raises UserError for an option that it has not."""
    arguments = text_shape(view)
    unknown = [key for key in config.kwargs if key != "layers"]
    if unknown:
        raise UserError(
            f"student.text.kwargs.{unknown[0]}: all but `layers` follows the teacher, whose weights and "
            "tokenizer it takes; leave it out"
        )
    try:
        return TextShape(**{**arguments, **config.kwargs}).text_cfg()
    except ValueError as error:
        raise UserError(f"student.text.kwargs: {error}") from error


def _kept(tower: Tower, head: Embedder) -> tuple[dict[str, Any], bool]:
    """Of open_clip's TextTransformer. Raises UserError for what that has no place for, by name."""
    embedding = tower.embedding
    assert isinstance(embedding, TokenEmbedding) and isinstance(tower.layout, Sequence), "a text tower"
    attention, mlp = tower.sublayers[0], tower.sublayers[1]
    assert isinstance(attention, Attention) and isinstance(mlp, Mlp), "a Transformer's block"
    lacks = {
        "norms of queries and keys": attention.q_norm is not None,
        "rotary positions": attention.rope is not None,
        "a gated MLP": mlp.gate is not None,
        "RMSNorms": not suits_layer_norms(tower),
        "no positions": embedding.positions is None,
        "a norm of what it pools": head.norm is not None,
    }
    for what, there in lacks.items():
        if there:
            raise UserError(
                f"the teacher's text tower has {what}, which open_clip's cannot have; choose another teacher"
            )
    assert embedding.positions is not None, "just seen"
    act = activation_name(mlp.act, "student clip")
    if act not in ("gelu", "gelu_tanh", "quick_gelu"):
        raise UserError(f"the teacher's text tower has the activation {act}, which open_clip's cannot")
    found: dict[str, Any] = {
        "context_length": len(embedding.positions),
        "vocab_size": len(embedding.weight),
        "width": tower.width,
        "heads": attention.heads,
        "layers": len(tower.ends),
        "mlp_ratio": mlp.up.weight.shape[0] / tower.width,
        "no_causal_mask": not attention.causal,
        "norm_kwargs": {"eps": attention.norm.eps},
        **_pooled(head),
    }
    found |= {"ls_init_value": 1.0} if attention.scale is not None else {}
    found |= {"act_kwargs": {"approximate": "tanh"}} if act == "gelu_tanh" else {}
    return found, act == "quick_gelu"


def _pooled(head: Embedder) -> dict[str, Any]:
    how, projection = head.pool, head.projection
    if isinstance(how, EndOfText):
        pool = {"pool_type": "argmax"} if how.token is None else {"pool_type": "eos", "eos_id": how.token}
    elif how in ("first", "last"):
        pool = {"pool_type": how}
    else:
        raise UserError(f"the teacher's text tower pools by {how}, which open_clip's cannot")
    if projection is None:
        return {**pool, "proj_type": "none"}
    return {**pool, "proj_bias": projection.bias is not None}
