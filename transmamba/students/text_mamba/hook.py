"""open_clip 3.3.0 builds a `TextMamba` where text_cfg says `transmamba`.

One of its functions and one of its dataclasses are replaced in `open_clip.model`: `_build_text_tower`, and
`CLIPTextCfg` by itself with one more field. Importing this file does it, once.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from .model import TextMamba
from .shape import OPEN_CLIP_FIELDS, TextShape

_FUNCTION, _CONFIG, _OURS = "_build_text_tower", "CLIPTextCfg", "builds_transmamba"
# of text_cfg, what its tokenizers read
_TOKENIZER = ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")


def register() -> None:
    """Raises UserError for a version of open_clip that has no such function, or builds its text otherwise."""
    import open_clip
    import open_clip.model as library

    theirs, config = getattr(library, _FUNCTION, None), getattr(library, _CONFIG, None)
    if getattr(theirs, _OURS, False):
        return
    takes = list(inspect.signature(theirs).parameters) if callable(theirs) else []
    if takes != ["embed_dim", "text_cfg", "quick_gelu", "cast_dtype"] or not dataclasses.is_dataclass(config):
        raise UserError(
            f"open_clip {open_clip.__version__} cannot build text towers of transmamba: it has no "
            f"open_clip.model.{_FUNCTION}(embed_dim, text_cfg, quick_gelu, cast_dtype) and {_CONFIG}; "
            "pip install open_clip_torch==3.3.0"
        )
    extended = _extended(config)
    library.CLIPTextCfg = open_clip.CLIPTextCfg = extended
    library._build_text_tower = _building(theirs, extended)


def _extended(config: Any) -> Any:
    """open_clip's dataclass with the field `transmamba`, under the same name."""

    @dataclass
    class CLIPTextCfg(config):
        transmamba: dict[str, Any] | None = None

    CLIPTextCfg.__module__, CLIPTextCfg.__qualname__ = config.__module__, config.__qualname__
    return CLIPTextCfg


def _building(theirs: Any, config: Any) -> Any:
    @functools.wraps(theirs)
    def build(embed_dim: int, text_cfg: Any, quick_gelu: bool = False, cast_dtype: Any = None) -> Any:
        cfg = config(**text_cfg) if isinstance(text_cfg, dict) else text_cfg
        if getattr(cfg, "transmamba", None) is None:
            return theirs(embed_dim, cfg, quick_gelu, cast_dtype)
        _check(cfg)
        return TextMamba(TextShape.of_text_cfg(embed_dim, vars(cfg)))

    setattr(build, _OURS, True)
    return build


def _check(cfg: Any) -> None:
    """Raises UserError for a field of text_cfg that is set and that a TextMamba would not heed."""
    heeded = (*OPEN_CLIP_FIELDS, *_TOKENIZER, "transmamba")
    given = [
        field.name
        for field in dataclasses.fields(cfg)
        if field.name not in heeded and getattr(cfg, field.name) != field.default
    ]
    if given:
        raise UserError(
            f"text_cfg has {', '.join(given)}, which a text tower of transmamba does not read; write under "
            "text_cfg.transmamba what it has, and leave the others out"
        )


register()
