"""Classes of our own in this process: a hybrid's configuration after a shape, its model, and the code of each
class beside weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .architectures import OURS, Kind, Shape, mamba_sizes

FOLDER = Path(__file__).parent / "own"
_IMPORTED = re.compile(r"^from \.(\w+) import", re.MULTILINE)
# what transformers loads with `trust_remote_code`, of the files in FOLDER
AUTO_MAP = {
    "AutoConfig": "configuration_transmamba.HybridConfig",
    "AutoModelForCausalLM": "modeling_transmamba.HybridForCausalLM",
}


def make_own_config(shape: Shape, student: str, other: Kind, **options: Any) -> Any:
    """A configuration whose layers without attention are of the kind `other`.

    student: the registered name of what it is a student as
    options: of such layers
    """
    kinds = ["full_attention" if k in shape.attention_layers else other for k in range(shape.depth)]
    if other == "linear_attention":
        options |= mamba_sizes(shape.heads, shape.head_size)
    if shape.experts is not None:
        options |= dict(
            num_experts=shape.experts.count,
            num_experts_per_tok=shape.experts.chosen,
            norm_topk_prob=shape.experts.routing == "topk_norm",
            router_scale=shape.experts.scale,
            expert_layers=shape.experts.layers(shape.depth),
        )
    return own_config()(
        **shape.special,
        **options,
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.neurons,
        layer_kinds=kinds,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        attention_bias=shape.attention_bias,
        mlp_bias=shape.mlp_bias,
        qk_norm=shape.qk_norm,
        rms_norm_eps=shape.eps,
        rope_parameters=dict(shape.rope),
        tie_word_embeddings=shape.tied,
        auto_map=AUTO_MAP,
        **{OURS: {"student": student, "null": 0}},
    )


def own_config() -> Any:
    """Its configuration's class."""
    from .own.configuration_transmamba import HybridConfig

    return HybridConfig


def own_model() -> Any:
    """Its class."""
    from .own.modeling_transmamba import HybridForCausalLM

    return HybridForCausalLM


def write_code(folder: Path, auto_map: Mapping[str, str] = AUTO_MAP) -> None:
    """The files that an `auto_map` names, and those that they import."""
    todo, done = [name.partition(".")[0] for name in auto_map.values()], set[str]()
    while todo:
        name = todo.pop()
        if name not in done:
            done.add(name)
            shutil.copyfile(FOLDER / f"{name}.py", folder / f"{name}.py")
            todo += _IMPORTED.findall((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
