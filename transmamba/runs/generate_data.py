"""Texts that a language model writes, to train its student on: data without data, as of LLM-QAT (arXiv
2305.17888), or answers to other people's prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..data.text.appended import Appended, check_place
from ..data.text.prompts import Prompt, Prompts, hash_of, prompts_of
from ..ecosystems import decoders
from ..ecosystems.generation import Drawing, check_drawing, ends_of, generate, left_padded
from ..ecosystems.language_tokenizer import HuggingFaceTokenizer, language_preprocessing
from ..ecosystems.sources import Source, read_source
from ..errors import UserError, refuse_all
from ..evaluation.cost import HALF, find_device
from ..teachers.fingerprint import fingerprint

Watch = Callable[[Iterable[int], str], Iterator[int]]
_DTYPES = {**HALF, "fp32": torch.float32}
# of a configuration, what has no part in what is computed
_NAMES = ("_name_or_path", "architectures", "transformers_version")


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How texts are written.

    documents:     how many; as many as there are prompts if left out. More of them come back to a prompt
        with other random numbers
    prompt_tokens: tokens of a document that are given, of texts
    tokens:        new ones at most
    temperature:   above 1 bolder, below 1 tamer; 0 takes the likeliest word
    top_p:         the likeliest words that hold so much of the probability are drawn from; 1 for all
    seed:          which prompts, in which order, and all that is drawn
    batch_size:    texts written at a time. No text depends on the others, but for rounding
    precision:     of the weights: bf16, fp16, fp32; `no` as they lie
    """

    documents: int | None = None
    prompt_tokens: int = 8
    tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32
    precision: Literal["no", "bf16", "fp16", "fp32"] = "no"

    def __post_init__(self) -> None:
        numbers = {key: getattr(self, key) for key in ("prompt_tokens", "tokens", "batch_size")}
        numbers |= {} if self.documents is None else {"documents": self.documents}
        problems = [f"{key} is {value}; write at least 1" for key, value in numbers.items() if value < 1]
        problems += check_drawing(self.temperature, self.top_p)
        if self.precision != "no" and self.precision not in _DTYPES:
            problems.append(f"precision is {self.precision!r}; write no, {', '.join(_DTYPES)}")
        refuse_all(problems)


@dataclass(frozen=True)
class Written:
    """What lies in a file of them.

    texts:   how many
    cut:     texts that did not end within the tokens they had
    left_out: prompts that were gone on with, but gave nothing, or an answer that did not end
    tokens:  new ones, of the texts that are there
    already: whether all of it was there before this call
    """

    path: Path
    texts: int
    cut: int
    left_out: int
    tokens: int
    already: bool

    def __str__(self) -> str:
        cut = f", {self.cut:,} of them cut where they did not end" if self.cut else ""
        left = f"; left out: {self.left_out:,} without an end or without words" if self.left_out else ""
        there = "was there already: " if self.already else ""
        return f"{self.path}: {there}{self.texts:,} texts{cut}, {self.tokens:,} new tokens{left}"


def generate_data(
    source: str | Path,
    out: str | Path,
    prompts: Any,
    writing: Writing | None = None,
    *,
    device: str | None = None,
    watch: Watch | None = None,
    say: Callable[[str], None] | None = None,
) -> Written:
    """Let a language model write texts, into a .jsonl (compressed as its name says) that the reader `text`
    reads, or, of prompts that are conversations, the reader `instructions`.

    source:  of a causal language model of transformers: a folder, an id, a .gguf, or a student of ours
    prompts: the configuration of a text reader, whose train split is taken, and no other
    watch:   shows how far it is: (numbers, title) to the same numbers
    say:     told in a line what is written, before it begins

    An interrupted call is gone on with by the same call, to the same bytes; what is whole is left as it is.
    Raises UserError for a file that was begun otherwise, and where model and prompts do not fit.
    """
    writing, path = writing or Writing(), Path(out).expanduser()
    check_place(path)
    target, found = find_device(device), read_source(str(source))
    if not decoders.is_decoder(found):
        raise UserError(
            f"{str(source)!r} is no causal language model of transformers, and writes no texts; write "
            "another, or --questions in the place of --prompts for one that answers about pictures"
        )
    config = decoders.read_config(found)
    tokenizer = _tokenizer(found, config)
    given = prompts_of(prompts.build("train"), tokenizer, writing.prompt_tokens, _room(config, writing))
    chosen = given.chosen(writing.documents or len(given.all), writing.seed)
    model: Any = decoders.load_decoder(found)
    if writing.precision != "no":
        model = model.to(_DTYPES[writing.precision])
    made = {
        "teacher": _hash(model),
        "prompts": hash_of(chosen),
        **asdict(writing),
        "documents": len(chosen),
        "device": target.type,
    }
    file = Appended(path, made)
    already = file.finished
    if not already:
        if say is not None:
            say(_plan(str(source), given, len(chosen), file, writing))
        _write(file, _Writer(model.to(target), tokenizer, given, writing, target), chosen, watch)
    counts = {key: file.counts.get(key, 0) for key in ("texts", "cut", "left_out", "tokens")}
    return Written(path, **counts, already=already)


@dataclass(frozen=True)
class _Writer:
    model: Any
    tokenizer: HuggingFaceTokenizer
    given: Prompts
    writing: Writing
    device: torch.device

    def write(self, start: int, prompts: Sequence[Prompt]) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """The records of the prompts from number `start` on, and what they count."""
        writing, rows = self.writing, [prompt.ids for prompt in prompts]
        inputs = {name: tensor.to(self.device) for name, tensor in left_padded(rows).items()}
        items = np.arange(start, start + len(rows), dtype=np.int64)
        drawing = Drawing(writing.seed, items, writing.temperature, writing.top_p)
        # what begins a text begins the next one where a model was trained on texts that nothing ends
        ends = [*ends_of(self.model), self.tokenizer.eos, *self.tokenizer.prefix]
        new = generate(
            self.model, inputs, writing.tokens, ends=ends, drawing=drawing if writing.temperature else None
        )
        records, counts = [], dict.fromkeys(("texts", "cut", "left_out", "tokens"), 0)
        for prompt, row in zip(prompts, new.tolist(), strict=True):
            length = next((place for place, word in enumerate(row) if word in ends), len(row))
            ended = length < len(row)
            record = self._record(prompt, row[:length], ended)
            if record is None:
                counts["left_out"] += 1
                continue
            records.append(record)
            counts["texts"] += 1
            counts["cut"] += not ended
            counts["tokens"] += length
        return records, counts

    def _record(self, prompt: Prompt, new: list[int], ended: bool) -> dict[str, Any] | None:
        """None for nothing but spaces, and for an answer that does not end: nobody is to learn to stop there.
        A text that does not end may stop within a letter, which is left out."""
        ids = new if self.given.asked else [*prompt.ids, *new]
        text = self.tokenizer.words(ids)
        text = text if ended else text.rstrip("\ufffd")
        if not text.strip() or (self.given.asked and not ended):
            return None
        if not self.given.asked:
            return {"text": text, "ended": ended}
        if self.given.plain:
            return {"prompt": prompt.said[0].content, "response": text}
        said = [asdict(message) for message in prompt.said]
        return {"messages": [*said, {"role": "assistant", "content": text}]}


def _write(file: Appended, writer: _Writer, chosen: Sequence[Prompt], watch: Watch | None) -> None:
    size = writer.writing.batch_size
    starts = range(0, len(chosen), size)[file.parts :]
    with file.writing() as add:
        for start in starts if watch is None else watch(starts, "writing"):
            add(*writer.write(start, chosen[start : start + size]))
    file.finish()


def _plan(source: str, given: Prompts, number: int, file: Appended, writing: Writing) -> str:
    kind = "answers" if given.asked else "texts"
    left = f"; left out: {given.left_out}" if given.left_out.total else ""
    begun = min(number, file.parts * writing.batch_size)
    on = f", going on after {begun:,}" if begun else ""
    return f"{source} writes {number:,} {kind} from {len(given.all):,} prompts{on}{left}"


def _tokenizer(source: Source, config: Any) -> HuggingFaceTokenizer:
    place = str(source.folder or source.repo or source.file)
    found = language_preprocessing(place, config, source.revision)
    if found is None:
        raise UserError(f"{source.text!r}: no tokenizer lies beside it; put its tokenizer.json there")
    assert isinstance(found.text, HuggingFaceTokenizer), "it is of transformers"
    return found.text


def _room(config: Any, writing: Writing) -> int | None:
    """Tokens that a prompt may have. Raises UserError where none is left."""
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        return None
    if context <= writing.tokens:
        raise UserError(
            f"tokens is {writing.tokens}, but the model reads at most {context} at once, its prompt among "
            f"them; write fewer"
        )
    return int(context) - writing.tokens


def _hash(model: Any) -> str:
    """Of its weights and of what its configuration says."""
    said: Mapping[str, Any] = {k: v for k, v in model.config.to_dict().items() if k not in _NAMES}
    text = json.dumps([ends_of(model), said], sort_keys=True, default=str)
    return hashlib.sha256(f"{fingerprint(model)}{text}".encode()).hexdigest()
