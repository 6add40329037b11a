"""A student's constructor arguments as the tag of a timm name: `vim_shaped.img_size=32,patch_size=4`.

open_clip makes its image tower by a timm name and gives no arguments with it, so the name says them. timm
hands a tag that it does not know to the entry point, as the string `pretrained_cfg`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import UserError

_KEY = re.compile(r"[a-z_][a-z0-9_]*")
_WORDS = {"true": True, "false": False, "none": None}
# what would end the tag, or make of it an address or a path
_FORBIDDEN = re.compile(r"[,=/:\s]")


def named(model: str, arguments: Mapping[str, Any]) -> str:
    """The timm name of a model of these arguments. Raises UserError for one that no tag can say."""
    return f"{model}.{','.join(f'{key}={_said(key, value)}' for key, value in arguments.items())}"


def _said(key: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list | tuple):
        # a single one ends with a plus, so that it is read as one of several
        return "+".join(_said(key, each) for each in value) + ("+" if len(value) == 1 else "")
    if isinstance(value, int | float):
        return repr(value).replace("+", "")  # 1e+20 is 1e20
    if not isinstance(value, str) or _FORBIDDEN.search(value) or "+" in value or _read(value) != value:
        raise UserError(f"{key}={value!r} cannot travel in the name of an image tower; leave it out")
    return value


def arguments_of(tag: str) -> dict[str, Any]:
    """What `named` wrote behind the model's name. Raises UserError for anything else."""
    found: dict[str, Any] = {}
    for item in tag.split(","):
        key, sign, text = item.partition("=")
        if not sign or not _KEY.fullmatch(key) or key in found:
            raise UserError(f"{item!r} in the tag {tag!r} is no shape; write key=value,key=value")
        found[key] = _read(text)
    return found


def told(pretrained_cfg: Any, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what timm is told, the model's arguments) of what an entry point is given: timm's pretrained_cfg is a
    tag, or one of timm's own, or None."""
    if isinstance(pretrained_cfg, str):
        return {}, {**arguments_of(pretrained_cfg), **kwargs}
    return {} if pretrained_cfg is None else {"pretrained_cfg": pretrained_cfg}, dict(kwargs)


def _read(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if "+" in text:
        return [_read(part) for part in text.removesuffix("+").split("+")]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
