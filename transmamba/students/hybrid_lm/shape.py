"""The shape of a hybrid after a teacher's decoder, and what of a decoder neither class holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from ...core.layout import Sequence as Text
from ...errors import UserError
from ...subcloning.plan import depth_map
from ...views.embeddings import Spliced, TokenEmbedding
from ...views.heads import LanguageHead
from ...views.placed import skeletons
from ...views.sublayers import Attention, Mlp
from ...views.view import Tower, View
from ..meant import wrong_teacher
from ..reading import activation_name
from .architectures import Shape
from .selected import asked_layers
from .upcycled import Upcycled

if TYPE_CHECKING:
    from .names import HybridLM

# of a teacher's configuration, what a student's has as it is; a token that is not there is None in both
_SPECIAL = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
# teachers whose biases are those of q, k and v alone
_BIASED = ("qwen2",)


Name = Literal["bamba", "granite", "own"]


def refuse(why: str) -> NoReturn:
    raise UserError(
        f"no hybrid_lm and no window_lm holds this teacher: {why}; choose a Llama, a Mistral without window, "
        "a SmolLM 1 or 2, a Qwen2 or a Qwen3"
    )


def blocks_of(tower: Tower) -> list[tuple[Attention, Mlp]]:
    """Attention and MLP of each layer, without numbers where they are elsewhere."""
    parts = skeletons(tower.sublayers)
    if tower.kinds != ("attention", "mlp") * (len(parts) // 2) or not parts:
        refuse("its layers are not attention and an MLP each")
    return list(zip(parts[::2], parts[1::2], strict=True))  # type: ignore[arg-type]


def architecture_for(
    view: View,
    asked: Literal["auto", "bamba", "granite", "own"],
    experts: Upcycled | None = None,
    pure: bool = False,
) -> Name:
    """The class that a student is saved as: with experts transformers' where it has such ones.

    pure: whether no layer keeps attention: transformers' class would have one more of all zero, with experts
    """
    if asked != "auto":
        return asked
    tower, _ = _decoder(view)
    if any(attention.q_norm is not None for attention, _ in blocks_of(tower)):
        return "own"
    if experts is not None:
        held = experts.routing == "topk_norm" and experts.every == 1 and not pure
        return "granite" if held else "own"
    return "granite" if _config_of(view)["model_type"] in _BIASED else "bamba"


def shape_of(view: View, asked: HybridLM, fused: bool, normed: bool = False) -> Shape:
    """The shape that follows a teacher where nothing else is asked.

    fused: whether the class has no biases in MLPs
    normed: whether the class can normalise queries and keys
    Raises UserError for a teacher that the class does not hold, for layers that are not there, and for more
    of anything than the teacher has.
    """
    tower, head = _decoder(view)
    blocks = blocks_of(tower)
    _check_norms(tower)
    for attention, mlp in blocks:
        _check_attention(attention, normed)
        _check_mlp(mlp, fused)
    if len(kinds := {a.q_norm is not None for a, _ in blocks}) > 1:
        refuse("some of its layers normalise queries and keys, others do not")
    sizes = {(a.heads, a.kv_heads or a.heads, a.head_width, len(m.up.weight)) for a, m in blocks}
    if len(sizes) > 1:
        refuse(f"its layers differ in (heads, heads of k and v, channels a head, neurons): {sorted(sizes)}")
    heads, kv_heads, head_size, neurons = sizes.pop()
    own_heads, own_kv_heads = _heads(asked, heads, kv_heads)
    chosen = chosen_layers(asked.depth, len(blocks))
    config = _config_of(view)
    return Shape(
        vocabulary=tower.embedding.weight.shape[0],
        width=_at_most("width", asked.width, tower.width),
        depth=len(chosen),
        heads=own_heads,
        kv_heads=own_kv_heads,
        head_size=head_size,
        neurons=_at_most("neurons", asked.neurons, neurons),
        eps=blocks[0][0].norm.eps,
        attention_layers=own_layers(
            asked_layers(asked.attention_layers, chosen, teacher_shape(view)), chosen, len(blocks)
        ),
        attention_bias=any(a.q.bias is not None or a.o.bias is not None for a, _ in blocks),
        mlp_bias=any(m.up.bias is not None for _, m in blocks),
        tied=head.tied,
        qk_norm=kinds.pop(),
        experts=asked.experts,
        rope=dict(config["rope_parameters"]),
        special={name: config.get(name) for name in _SPECIAL}
        | {"initializer_range": config.get("initializer_range", 0.02)},
    )


def teacher_shape(view: View) -> dict[str, int]:
    """By what the file of a selection knows its teacher."""
    tower, _ = _decoder(view)
    blocks = blocks_of(tower)
    first = blocks[0][0]
    return {
        "layers": len(blocks),
        "width": tower.width,
        "heads": first.heads,
        "kv_heads": first.kv_heads or first.heads,
        "vocabulary": tower.embedding.weight.shape[0],
    }


def _at_most(name: str, asked: int | None, theirs: int) -> int:
    if asked is not None and asked > theirs:
        raise UserError(f"student.{name} is {asked}; write {theirs} at most, the teacher's, or leave it out")
    return asked or theirs


def _heads(asked: HybridLM, heads: int, kv_heads: int) -> tuple[int, int]:
    """(heads, heads of k and v). Without a word on the second, as many of the first share one as in the
    teacher."""
    shared = heads // kv_heads
    mine = _at_most("heads", asked.heads, heads)
    theirs = _at_most("kv_heads", asked.kv_heads, kv_heads)
    if asked.kv_heads is None:
        theirs = mine // shared
    if asked.heads is None:
        mine = theirs * shared
    if not theirs or mine % theirs or mine // theirs > shared:
        raise UserError(
            f"student.heads is {mine} on {theirs} of k and v, in the teacher {heads} on {kv_heads}; write a "
            f"whole multiple of kv_heads, {shared} times as many at most"
        )
    return mine, theirs


def chosen_layers(depth: int | None, teacher: int) -> list[int]:
    """The teacher's layer behind each of the student's. Raises UserError for more than it has."""
    if depth is not None and not 1 <= depth <= teacher:
        raise UserError(f"student.depth is {depth}; write 1 to {teacher}, the teacher's layers")
    return depth_map(depth or teacher, teacher)


def own_layers(attention_layers: Sequence[int], chosen: Sequence[int], teacher: int) -> tuple[int, ...]:
    """The student's numbers of those of the teacher's layers. Raises UserError for one that is not there."""
    for layer in attention_layers:
        if not 0 <= layer < teacher:
            raise UserError(
                f"student.attention_layers has {layer}; the teacher's layers are 0 to {teacher - 1}"
            )
        if layer not in chosen:
            raise UserError(
                f"student.attention_layers has {layer}, which a student of {len(chosen)} layers leaves out; "
                f"it takes {', '.join(map(str, chosen))}"
            )
    return tuple(k for k, layer in enumerate(chosen) if layer in attention_layers)


def _config_of(view: View) -> Any:
    if view.config is None or "rope_parameters" not in view.config:
        refuse("no configuration of transformers says its rotary positions")
    return view.config


def _decoder(view: View) -> tuple[Tower, LanguageHead]:
    tower, head = view.towers.get("decoder"), view.heads.get("decoder")
    if tower is not None and isinstance(tower.embedding, Spliced):
        raise UserError(
            "hybrid_lm and window_lm are made of a language model, and this teacher is a LLaVA; its decoder "
            "becomes a hybrid in the student llava, by decoder.kind=hybrid"
        )
    if tower is None or not isinstance(head, LanguageHead) or not isinstance(tower.layout, Text):
        raise wrong_teacher("hybrid_lm and window_lm are made of a language model with its head", view)
    embedding = tower.embedding
    if not isinstance(embedding, TokenEmbedding) or embedding.positions is not None:
        refuse("its positions are learnt vectors")
    if embedding.scale != 1.0:
        refuse(f"its embeddings are scaled by {embedding.scale:g}")
    if head.linear.bias is not None:
        refuse("its head has a bias")
    return tower, head


def check_upcycled(view: View) -> None:
    """Raises UserError for MLPs that experts cannot be copies of."""
    tower, _ = _decoder(view)
    mlps = [part for part in skeletons(tower.sublayers) if isinstance(part, Mlp)]
    if not mlps:
        raise UserError(
            f"student.experts are made of a teacher's MLPs, and this one has none, but "
            f"{', '.join(sorted(set(tower.kinds))) or 'no layer'}; leave experts out, or take another teacher"
        )
    if any(
        part is not None and part.bias is not None for mlp in mlps for part in (mlp.gate, mlp.up, mlp.down)
    ):
        raise UserError("student.experts have no biases, which the teacher's MLPs have; leave experts out")


def _check_norms(tower: Tower) -> None:
    norms = [sublayer.norm for sublayer in skeletons(tower.sublayers)]
    if tower.norm is None or not all(norm.rms for norm in [tower.norm, *norms]):
        refuse("its norms are not RMSNorms, one of them before the head")
    if len(found := {norm.eps for norm in [tower.norm, *norms]}) > 1:
        refuse(f"its norms have several epsilons: {sorted(found)}")


def _check_attention(attention: Attention, normed: bool) -> None:
    _check_qk_norms(attention, normed)
    if attention.window is not None:
        refuse(f"its attention has a window of {attention.window} tokens")
    if attention.rope is None:
        refuse("a layer of it has no rotary positions (as SmolLM3 has)")
    if 2 * len(attention.rope.frequencies) != attention.head_width:
        refuse("its rotary positions turn a part of each head")
    if attention.softmax_scale is not None:
        refuse(f"its attention is scaled by {attention.softmax_scale:g}")
    if attention.scale is not None or not attention.causal:
        refuse("its attention is not causal, or has a LayerScale")


def _check_qk_norms(attention: Attention, normed: bool) -> None:
    norms = [norm for norm in (attention.q_norm, attention.k_norm) if norm is not None]
    if not norms:
        return
    if not normed:
        raise UserError(
            "the teacher normalises queries and keys (as Qwen3 does), which neither Bamba nor "
            "GraniteMoeHybrid does; write student.architecture=own"
        )
    same = len(norms) == 2 and all(norm.rms and norm.eps == attention.norm.eps for norm in norms)
    if not same or any(norm.weight is None or len(norm.weight) != attention.head_width for norm in norms):
        refuse("its norms of queries and keys are not RMSNorms of each head, with the eps of the others")
    if attention.q.bias is not None or attention.k.bias is not None:
        refuse("its queries and keys have biases beneath their norms")


def _check_mlp(mlp: Mlp, fused: bool) -> None:
    if mlp.gate is None or activation_name(mlp.act, "hybrid_lm") != "silu" or mlp.scale is not None:
        refuse("its MLPs are not silu(gate) * up")
    if fused and any(part.bias is not None for part in (mlp.gate, mlp.up, mlp.down)):
        raise UserError(
            "the teacher's MLPs have biases, which a GraniteMoeHybrid has not; write "
            "student.architecture=bamba"
        )
