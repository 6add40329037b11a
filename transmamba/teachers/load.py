"""The teacher that a name or a module means."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..config.registry import TEACHERS
from ..ecosystems.find import ecosystem_of
from ..ecosystems.sources import read_source
from ..ecosystems.transformers import unknown_type
from ..ecosystems.weights import read_weights
from ..errors import UserError
from .teacher import Teacher


def adapt_teacher(module: nn.Module) -> Teacher:
    """The teacher in a module the user already holds, by the first registered adapter that knows its
    class. Raises UserError where something acts in it that its weights do not say (adapters, hooks)."""
    for name in TEACHERS:
        adapter = TEACHERS[name]
        if hasattr(adapter, "accepts") and adapter.accepts(module):
            return adapter.adapt(module, source=type(module).__name__)
    raise no_teacher(module)


def no_teacher(module: nn.Module) -> UserError:
    """The error for a module that no registered adapter knows."""
    return UserError(
        f"no teacher adapter for {type(module).__module__}.{type(module).__qualname__}; "
        "known: timm VisionTransformer, transformers ViT, DeiT, DINOv2, CLIP, SigLIP, Llama and its kin, "
        "GPT-2 and LLaVA, open_clip CLIP "
        "(docs/adding_a_part.md shows how to add one)"
    )


def load_teacher(source: str | Path, architecture: str | None = None) -> Teacher:
    """The teacher named by `source`: a run or model folder, a timm name, an open_clip name (`NAME/TAG`), a
    Hugging Face id, or, with `architecture` (a timm name), a file of weights.

    Raises UserError with what was tried.
    """
    try:
        found = read_source(str(source), architecture)
        for name in TEACHERS:
            part = TEACHERS[name]
            recognised = part.recognise(found) if hasattr(part, "recognise") else None
            if recognised is not None:
                return recognised.build()
        if found.file is not None:
            read_weights(found.file)  # what is no checkpoint at all is told so first
        ecosystem_of(found)
    except UserError as error:
        said = str(error).removeprefix("teacher ")
        raise UserError(f"teacher {said if str(source) in said else f'{str(source)!r}: {said}'}") from error
    raise unknown_type(str(source), found.config.get("model_type", "unknown"))
