"""A tokenizer without a vocabulary to learn: a token is a byte of the text in UTF-8, and one ends a text."""

from __future__ import annotations

from typing import Any

# what a student is told in the place of a tokenizer's folder
BYTES = "bytes"
# number 256
END = "<|endoftext|>"


def byte_tokenizer() -> Any:
    """transformers' own, of byte-level BPE without merges: whoever loads its file needs none of us. Token n
    is byte n."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(_letters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False
    )


def _letters() -> list[str]:
    """The letter by which byte-level BPE writes each byte, as in GPT-2: itself where it can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(n) if n in seen else chr(next(others)) for n in range(256)]
