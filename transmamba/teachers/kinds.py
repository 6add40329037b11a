"""What kind of model each teacher reads, for whoever gave it one of another kind."""

from __future__ import annotations

import contextlib
from typing import Any

from ..config.registry import TEACHERS
from ..ecosystems.sources import read_source
from ..errors import UserError

_READS = {
    "causal_lm": "a language model",
    "hf_clip": "a CLIP or SigLIP of Hugging Face",
    "hf_vit": "an image model of Hugging Face",
    "llava": "a LLaVA",
    "open_clip": "a CLIP or SigLIP of open_clip",
    "sequence": "a model of points",
    "timm_vit": "an image model of timm",
}


def check_kind(part: Any) -> None:
    """Raises UserError for a recipe's teacher whose model another teacher reads: of another library, or of
    another task. What no teacher knows is the part's own to refuse."""
    part = getattr(part, "teacher", part)  # a stored one's
    model, name = getattr(part, "model", None), type(part).name
    if not isinstance(model, str) or not hasattr(part, "recognise"):
        return
    source = None
    with contextlib.suppress(UserError):  # its own, too, to tell
        source = read_source(model, getattr(part, "architecture", None), getattr(part, "revision", None))
    if source is None or part.recognise(source) is not None:
        return
    for other in TEACHERS:
        if hasattr(TEACHERS[other], "recognise") and TEACHERS[other].recognise(source) is not None:
            raise UserError(
                f"teacher {model!r} is {_read(other)}, and the teacher {name} reads {_read(name)}: write "
                f"such a one, or teacher.name={other} (auto reads each kind) in a recipe for it"
            )


def _read(name: str) -> str:
    return _READS.get(name, f"a model that the teacher {name} reads")
