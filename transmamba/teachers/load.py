"""The teacher that a name or a module means."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config.registry import TEACHERS
from ..ecosystems.find import ECOSYSTEMS, ecosystem_of
from ..ecosystems.slices import NotByName
from ..ecosystems.sources import Source, read_source
from ..ecosystems.unknown import unknown_type
from ..ecosystems.weights import read_weights
from ..errors import Inexpressible, UserError
from .of_module import OfModule
from .sliced import load_streamed
from .teacher import Teacher

logger = logging.getLogger("transmamba.teacher")


def adapt_teacher(module: nn.Module) -> Teacher:
    """The teacher in a module the user already holds, by the first registered adapter that knows its
    class. Raises UserError where something acts in it that its weights do not say (adapters, hooks)."""
    _, part = part_holding(module)
    teacher: Teacher = part.adapt(module, source=type(module).__name__)
    return teacher


def part_holding(module: nn.Module) -> tuple[str, Any]:
    """The first registered teacher, by name, that reads modules of this class. Raises UserError for none:
    Inexpressible where it is a model of a library we know."""
    for name in TEACHERS:
        part = TEACHERS[name]
        if hasattr(part, "accepts") and part.accepts(module):
            return name, part
    ours = any(ecosystem.holds(module) for ecosystem in ECOSYSTEMS)
    raise (Inexpressible if ours else UserError)(
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
    with _named(str(source)):
        _, part = part_reading(read_source(str(source), architecture))
        teacher: Teacher = part.build()
        return teacher


def outline_teacher(source: str | Path, architecture: str | None = None) -> Teacher:
    """The same without weights, which are read where its kind cannot be had without."""
    with _named(str(source)):
        _, part = part_reading(read_source(str(source), architecture))
        teacher: Teacher = part.outline() if hasattr(part, "outline") else part.build()
        return teacher


def load_streamed_teacher(source: str) -> Teacher | None:
    """The teacher named by a folder or a Hugging Face id with its blocks left in their files, see
    `sliced.load_streamed`; None, said in a line, where it has to be read whole.

    Raises UserError with what was tried.
    """
    with _named(source):
        found = read_source(source)
        _, part = part_reading(found)
        if not isinstance(part, OfModule):
            return None
        try:
            return load_streamed(part, found, torch.device("cpu"))
        except NotByName as error:
            logger.warning("%s: it is read whole", error)
            return None


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Within it a UserError names the teacher."""
    try:
        yield
    except UserError as error:
        said = str(error).removeprefix("teacher ")
        raise UserError(f"teacher {said if source in said else f'{source!r}: {said}'}") from error


def part_reading(source: Source) -> tuple[str, Any]:
    """The first registered teacher, by name, that recognises a source, made for it. Raises UserError with
    what was tried, Inexpressible where it is a model of a library we know."""
    for name in TEACHERS:
        part = TEACHERS[name]
        recognised = part.recognise(source) if hasattr(part, "recognise") else None
        if recognised is not None:
            return name, recognised
    if source.file is not None:
        read_weights(source.file)  # what is no checkpoint at all is told so first
    ecosystem_of(source)
    raise unknown_type(source.text, source.config.get("model_type", "unknown"))
