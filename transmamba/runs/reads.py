"""What a model's inputs look like, in words: its preprocessing of images, and its tokenizer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..core.preprocessing import PicturesAndText, Preprocessing, of_pictures
from ..core.text import TextOnly
from ..ecosystems import decoders
from ..ecosystems.open_clip_tokenizer import OpenClipTokenizer
from ..ecosystems.sources import Source
from ..ecosystems.texts import tokenizer_beside

# what transformers writes is larger where nobody set one
_NO_LIMIT = 10**9


def reads_of(
    preprocessing: Preprocessing | PicturesAndText | TextOnly | None, found: Source | None, texts: bool
) -> dict[str, Any]:
    """`preprocessing` of images, `tokenizer` of a model that reads `texts`: what its preprocessing says, else
    what lies beside it, None for nothing; and `pictures` of one that reads them between words."""
    reads: dict[str, Any] = {}
    if isinstance(preprocessing, Preprocessing | PicturesAndText):
        values = asdict(of_pictures(preprocessing))
        values.pop("text")
        reads["preprocessing"] = values
    if isinstance(preprocessing, PicturesAndText):
        reads["pictures"] = {"token": preprocessing.image_token, "tokens_each": preprocessing.places}
    if isinstance(text := getattr(preprocessing, "text", None), OpenClipTokenizer):
        reads["tokenizer"] = _of_open_clip(text)
    elif texts and found is not None:
        reads["tokenizer"] = _beside(found)
    return reads


def _of_open_clip(tokenizer: OpenClipTokenizer) -> dict[str, Any]:
    return {
        "kind": "CLIP's byte pairs" if tokenizer.name is None else "of transformers",
        "in": tokenizer.name,
        "revision": tokenizer.revision,
        "context": tokenizer.context,
        **dict(tokenizer.options),
    }


def _beside(found: Source) -> dict[str, Any] | None:
    """None where none lies beside the model."""
    if decoders.is_gguf(found) or (found.folder is None and found.repo is None):
        return {"in": found.text} if decoders.is_gguf(found) else None
    made = tokenizer_beside(found)
    if made is None:
        return None
    longest = int(made.model_max_length)
    return {
        "kind": type(made).__name__,
        "vocabulary": len(made),
        "longest": longest if longest < _NO_LIMIT else None,
    }
