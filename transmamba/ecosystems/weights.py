"""Files that hold weights alone: read without running anything in them, and loaded without a guess."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .damaged import damage

# where training scripts keep a model's tensors, in the order in which timm looks
_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model")
_WRAPPERS = ("_orig_mod.", "module.")  # of compiled and of distributed models
_NAMED = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a training script's checkpoint, by name.

    Raises UserError for what is no checkpoint, or needs classes beside tensors and argparse.Namespace.
    """
    found: Any = read_checkpoint(path)
    for name in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    tensors = found if isinstance(found, Mapping) else {}
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"checkpoint {str(path)!r} holds no weights by name; save the model's state_dict()")
    return {_unwrapped(name): tensor for name, tensor in tensors.items()}


def read_checkpoint(path: Path) -> Any:
    """What a file of weights holds, read without running any of it. Raises UserError in one line."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {str(path)!r} does not exist") from None
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"checkpoint {str(path)!r} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # of pickle, zip, torch, safetensors and the system: each has its own
        raise UserError(f"checkpoint {_why(path, error)}") from error


def _why(path: Path, error: Exception) -> str:
    code = _runs_code(error)
    if code is None and (damaged := damage(path)) is not None:
        return damaged
    if isinstance(error, OSError):
        return f"{str(path)!r} cannot be read: {error.strerror or error}"
    return f"{str(path)!r} is refused: {code or 'it is neither what torch.save writes nor safetensors'}"


def _runs_code(error: Exception) -> str | None:
    unknown = re.search(
        r"GLOBAL ([\w.]+) was not an allowed global|Unsupported (?:class|global) ([\w.]+)", str(error)
    )
    if unknown is not None:
        named = unknown[1] or unknown[2]
        return f"reading it would run code ({named}); save the model's state_dict() alone"
    return None


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def head_of(state: Mapping[str, Tensor], classifier: Any) -> int:
    """Classes that the head of these weights tells apart; 0 where they have none.

    classifier: the head's name, or several (timm's `classifier`)
    """
    names = classifier if isinstance(classifier, list | tuple) else (classifier,)
    heads = [state[f"{name}.weight"] for name in names if f"{name}.weight" in state]
    return len(heads[0]) if heads else 0


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load every tensor, of the same shape; a model on the meta device is compared alone. Raises UserError
    that names what is missing, left over or of another shape; nothing is resized."""
    mine = model.state_dict()
    wrong = [
        f"{name} is {_shape(state[name])} there and {_shape(tensor)} in the model"
        for name, tensor in mine.items()
        if name in state and state[name].shape != tensor.shape
    ]
    missing = [name for name in mine if name not in state]
    unexpected = [name for name in state if name not in mine]
    said = [
        *([_some(wrong)] if wrong else []),
        *([f"it lacks {_some(missing)}"] if missing else []),
        *([f"the model has no {_some(unexpected)}"] if unexpected else []),
    ]
    if said:
        raise UserError(f"{what}: {'; '.join(said)}")
    if not any(tensor.is_meta for tensor in mine.values()):
        model.load_state_dict(dict(state))


def unfitting(error: Exception) -> str | None:
    """What torch says of tensors that do not fit a model, which it names first: what is wrong on the next
    line, with the first of their names. None of another error."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines or "loading state_dict" not in lines[0]:
        return None
    names = re.findall(r'"([^"]+)"', lines[1]) if len(lines) > 1 else []
    second = f"{lines[1].partition(':')[0]}: {_some(names)}" if names else " ".join(lines[1:2])
    return f"{lines[0]} {second}"


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
