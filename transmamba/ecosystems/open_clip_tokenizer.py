"""open_clip's tokenizers, by what a model's text_cfg says of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.text import Tokens
from ..errors import UserError
from . import hub
from .sources import Source

_CONTEXT = 77  # open_clip's, where text_cfg does not say
CLIP_VOCABULARY = 49408


@dataclass(frozen=True)
class OpenClipTokenizer:
    """A `core.text.Tokenizer`: CLIP's own byte pairs, or a tokenizer of transformers as open_clip wraps it.

    name:    of the latter, an id or a folder; None for CLIP's own
    options: of open_clip's class, beside the context
    masked:  whether it says which tokens are real: where the tower reads the tokens behind a text's end too,
        a mask would make it another
    revision: branch, tag or commit on the Hub, of an id
    """

    context: int = _CONTEXT
    name: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    masked: bool = True
    revision: str | None = None

    @classmethod
    def of(cls, text_cfg: Mapping[str, Any], source: Source | None = None) -> OpenClipTokenizer | None:
        """As open_clip.get_tokenizer chooses it; in the folder of a model, another library's lies beside it,
        and in the model's own repository it is that of the model's revision. None where it would choose
        CLIP's own for a tower that has not its words."""
        options = dict(text_cfg.get("tokenizer_kwargs") or {})
        name, revision = text_cfg.get("hf_tokenizer_name") or None, options.pop("revision", None)
        if name is not None and text_cfg.get("tokenizer_mode"):
            options["tokenizer_mode"] = text_cfg["tokenizer_mode"]
        if name is not None and source is not None and source.folder is not None:
            name, revision = str(source.folder), None
        elif name is not None and source is not None and name == source.repo:
            revision = source.revision or revision
        if name is None and text_cfg.get("vocab_size", CLIP_VOCABULARY) < CLIP_VOCABULARY:
            return None
        context = text_cfg.get("context_length", _CONTEXT)
        causal = not text_cfg.get("no_causal_mask")
        at_end = text_cfg.get("pool_type", "argmax") in ("argmax", "eos")
        ours = text_cfg.get("transmamba")  # our own text tower, which is causal
        at_end = at_end if ours is None else ours.get("pool_type", "argmax") in ("argmax", "eos")
        return cls(context, name, tuple(sorted(options.items())), causal and at_end, revision)

    def text_cfg(self, base_model: str | None = None) -> dict[str, Any]:
        """What text_cfg says of it, so that open_clip.get_tokenizer makes it again, from files that lie
        beside it; `base_model` is where they are from on the Hub."""
        options = dict(self.options)
        found: dict[str, Any] = {}
        if self.name is not None:
            local = Path(self.name).expanduser().is_dir()
            found["hf_tokenizer_name"] = (base_model or Path(self.name).name) if local else self.name
            if mode := options.pop("tokenizer_mode", None):
                found["tokenizer_mode"] = mode
            options |= self.at
        return {**found, **({"tokenizer_kwargs": options} if options else {})}

    @property
    def at(self) -> dict[str, str]:
        """What open_clip's class, which hands it on, is told of the revision."""
        return {} if self.revision is None else {"revision": self.revision}

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Raises UserError where the tokenizer cannot be had."""
        made = _made(self)
        texts = list(texts)
        if self.name is not None:
            whole = made.tokenizer([made.clean_fn(text) for text in texts]).input_ids if texts else []
            ids = made(texts).long() if texts else torch.zeros(0, self.context, dtype=torch.int64)
            return Tokens(ids, None, sum(len(row) > self.context for row in whole))
        rows = [[made.sot_token_id, *made.encode(text), made.eot_token_id] for text in texts]
        ids = torch.zeros(len(rows), self.context, dtype=torch.int64)
        for n, row in enumerate(rows):
            cut = row if len(row) <= self.context else [*row[: self.context - 1], made.eot_token_id]
            ids[n, : len(cut)] = torch.tensor(cut)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        mask = torch.arange(self.context) < lengths[:, None] if self.masked else None
        return Tokens(ids, mask, int((lengths > self.context).sum()))

    def save(self, folder: Path) -> None:
        if self.name is not None:
            _made(self).save_pretrained(str(folder))


@functools.lru_cache(maxsize=8)
def _made(tokenizer: OpenClipTokenizer) -> Any:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    options = dict(tokenizer.options)
    if tokenizer.name is None:
        return SimpleTokenizer(context_length=tokenizer.context, **options)
    try:
        with hub.without_waiting():
            return HFTokenizer(tokenizer.name, context_length=tokenizer.context, **options, **tokenizer.at)
    except Exception as error:
        raise UserError(f"tokenizer {tokenizer.name!r} could not be loaded: {hub.explain(error)}") from error
