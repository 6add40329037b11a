"""What tells one teacher from another: a hash of its tensors and of how its view computes with them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..views.placed import Placed
from ..views.view import View

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype)


def fingerprint(view: View | nn.Module) -> str:
    """SHA-256 in hex: the same for the same numbers in the same architecture, wherever they are from."""
    digest = hashlib.sha256()
    for part in _parts(view):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes | memoryview]:
    """Everything that makes it up, in a fixed order."""
    if isinstance(value, Tensor):
        yield _word(f"{value.dtype} {tuple(value.shape)}")
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        return
    if isinstance(value, _PLAIN):
        yield _word(repr(value))
        return
    inner = _inside(value)
    yield _word(f"{_name(value)} {len(inner)}")
    for name, item in inner:
        yield _word(name)
        yield from _parts(item)


def _inside(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        return [("module", repr(value)), *sorted(value.state_dict().items())]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Mapping):
        return sorted((str(key), item) for key, item in value.items())
    if isinstance(value, tuple | list | Placed):
        return [(str(number), item) for number, item in enumerate(value)]
    if isinstance(value, functools.partial):
        return [("function", value.func), ("arguments", value.args), ("keywords", value.keywords)]
    # an activation is known by its name; whatever else there is, by what it holds
    return [] if isinstance(value, Callable) else sorted(vars(value).items())  # type: ignore[arg-type]


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    # where a sublayer lies is no part of it
    return "tuple" if isinstance(value, tuple | list | Placed) else f"{named.__module__}.{named.__qualname__}"


def _word(text: str) -> bytes:
    return f"{text}\0".encode()
