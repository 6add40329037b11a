"""Models of sequences of points, which no other library has: a folder of ours, recognised, loaded and
described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..config.registry import STUDENTS
from ..core.card import Card
from ..core.points import PointShape
from ..errors import UserError
from .damaged import damage_of
from .origin import origin_in_hand
from .sources import Source

library = "transmamba"
WEIGHTS = "model.safetensors"


def recognise(source: Source) -> bool:
    said = source.config.get("transmamba")
    others = "model_type" in source.config or "architecture" in source.config or "model_cfg" in source.config
    return isinstance(said, dict) and not others and said.get("student") in STUDENTS


def load(source: Source) -> nn.Module:
    """Raises UserError where its weights are missing, or are another model's."""
    if source.folder is None:
        raise UserError(
            f"{source.text!r}: models of points are read from a folder; download it, and write that"
        )
    model: Any = STUDENTS[source.config["transmamba"]["student"]].empty(source)
    try:
        state = load_file(source.folder / WEIGHTS)
        model.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        if (damaged := damage_of(str(source.folder))) is not None:
            raise UserError(damaged) from error
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source.text!r}: {WEIGHTS} does not hold this model ({said}); train it again"
        ) from error
    model.name_or_path = str(source.folder)
    loaded: nn.Module = model.eval()
    return loaded


def holds(model: nn.Module) -> bool:
    return isinstance(getattr(model, "points", None), PointShape)


def save(model: nn.Module, folder: Path, preprocessing: Any = None) -> None:
    built: Any = model
    built.save_pretrained(folder)


def preprocessing(model: nn.Module) -> Any:
    """What it reads, and says of it."""
    built: Any = model
    return built.points


_SNIPPET = """import transmamba

# reads points (B, L, {width}), says values (B, L, {outputs})
model = transmamba.load_student("FOLDER").eval()
"""


def card(model: nn.Module) -> Card:
    built: Any = model
    found = origin_in_hand(getattr(model, "name_or_path", ""))
    return Card(
        library=library,
        pipeline_tag="other",
        snippet=_SNIPPET.format(width=built.points.width, outputs=built.points.outputs),
        licence=found.licence,
        base_model=found.base_model,
    )
