"""Groups of a hybrid's parameters that a stage may train."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .architectures import architecture_of

if TYPE_CHECKING:
    from .model import HybridStudent


def groups_of(student: HybridStudent) -> dict[str, Callable[[str], bool]]:
    """Each a test of names; experts and their routers are of `mlp`, too."""
    architecture = architecture_of(student.config)
    mlps = tuple(f".{name}." for name in (architecture.mlp, architecture.experts) if name is not None)
    kept = tuple(f"model.layers.{k}." for k in student.attention_layers)
    head = "model.embed_tokens." if student.config.tie_word_embeddings else "lm_head."
    groups: dict[str, Callable[[str], bool]] = {
        "mixers": lambda name: _in_mixer(name) and not name.startswith(kept),
        "attention": lambda name: _in_mixer(name) and name.startswith(kept),
        "mlp": lambda name: any(mlp in name for mlp in mlps),
        "router": lambda name: ".router." in name,
        "embedding": lambda name: name.startswith("model.embed_tokens."),
        "head": lambda name: name.startswith(head),
        "norms": lambda name: name.endswith("norm.weight") and not _in_mixer(name),
    }
    if "window_mamba" in student.kinds:  # what attention's own weights are not
        groups["far"] = lambda name: ".self_attn.far." in name
    return groups


def _in_mixer(name: str) -> bool:
    """Whether a parameter is part of Mamba, Mamba-2 or attention."""
    return ".mamba." in name or ".self_attn." in name
