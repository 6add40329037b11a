"""Models of transformers that write, about pictures too: greedily, or by random numbers that belong to each
row."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..data.hashing import hash64
from ..errors import UserError

_UNIT = 2.0**-53


@dataclass(frozen=True)
class Drawing:
    """How rows draw their words: word t of row r by one number, a hash of (seed, items[r], t), so that it
    depends neither on the other rows nor on what was written before this call.

    items:       (B,) what each row is known by
    temperature: logits are divided by it, above 0
    top_p:       the likeliest words that hold so much of the probability are drawn from (nucleus sampling,
        arXiv 1904.09751); 1 for all
    """

    seed: int
    items: npt.NDArray[np.int64]
    temperature: float = 1.0
    top_p: float = 1.0

    def uniform(self, step: int) -> Tensor:
        """(B,) float64 in [0, 1)"""
        bits = hash64(self.seed, self.items, step) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64) * _UNIT)

    def draw(self, logits: Tensor, step: int) -> Tensor:
        """(B,) words out of logits (B, V), by the inverse of the cumulative distribution. Raises UserError
        for logits that are not finite."""
        probabilities = (logits.float() / self.temperature).softmax(dim=-1, dtype=torch.float64)
        order = None
        if self.top_p < 1:
            probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
            before = probabilities.cumsum(dim=-1) - probabilities
            probabilities = probabilities.masked_fill(before >= self.top_p, 0.0)
        sums = probabilities.cumsum(dim=-1)
        if not torch.isfinite(sums[:, -1]).all():
            raise UserError(
                "the model's logits are not finite; its weights are damaged, or the precision is too low for "
                "them (fp16 overflows where bf16 and float32 do not)"
            )
        wanted = self.uniform(step).to(sums.device)[:, None] * sums[:, -1:]
        # the first word whose sum is above; never one of no probability
        place = torch.searchsorted(sums, wanted, right=True).clamp_max(sums.shape[-1] - 1)
        return (place if order is None else order.gather(1, place))[:, 0]


class _Draws:
    """A logits processor of transformers that leaves one word, for greedy search to take."""

    def __init__(self, drawing: Drawing, given: int) -> None:
        self.drawing, self.given = drawing, given

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.drawing.draw(scores, input_ids.shape[1] - self.given)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, chosen[:, None], 0.0)


def generate(
    model: Any,
    inputs: Mapping[str, Tensor],
    limit: int,
    *,
    ends: Sequence[int] = (),
    drawing: Drawing | None = None,
) -> Tensor:
    """What a model of transformers writes, by its own `generate` with its cache: (B, at most `limit`) tokens.
    A row that has ended is filled up with the token that ends it.

    inputs:  `text` (B, L) with `text_mask` (B, L) where rows have padding, which lies before them; `image`
        (P, C, H, W), the pictures of all rows in order, where the text has places for them, and `prompt_mask`
        (B, L) of a model that takes it
    ends:    tokens that end a text beside those that the model's own configuration names
    drawing: how words are drawn; without one the likeliest is taken

    Nothing else that a generation_config.json says is followed (temperatures, penalties, top_k), but that a
    model never writes its image token (`never_writing`).
    """
    from transformers import GenerationConfig, LogitsProcessorList

    text = inputs["text"]
    ended = list(dict.fromkeys([*ends_of(model), *ends]))
    settings = GenerationConfig(
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=ended or None,
        pad_token_id=ended[0] if ended else 0,
        use_cache=True,
        suppress_tokens=_marks_suppressed(model),
    )
    draws = [] if drawing is None else [_Draws(drawing, text.shape[1])]
    with torch.no_grad(), evaluating(model), _plainly(model), on_our_kernels(model):
        made: Tensor = model.generate(
            **_given(model, inputs),
            generation_config=settings,
            logits_processor=LogitsProcessorList(draws),
        )
    return made[:, text.shape[1] :]


def next_logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, V): what a model of transformers foretells after `text`, by one pass as `generate`'s first; inputs
    as there."""
    with torch.no_grad(), evaluating(model), on_our_kernels(model):
        logits: Tensor = model(**_given(model, inputs), use_cache=False, logits_to_keep=1).logits
    return logits[:, -1]


def _given(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch by transformers' names."""
    text = inputs["text"]
    mask = inputs.get("text_mask", torch.ones_like(text))
    assert bool(mask[:, -1].all()), "padding lies before a text that is gone on with"
    given = {"input_ids": text, "attention_mask": mask.long()}
    if "image" in inputs:
        given["pixel_values"] = inputs["image"].to(model.dtype)
    if "prompt_mask" in inputs and "prompt_mask" in inspect.signature(model.forward).parameters:
        given["prompt_mask"] = inputs["prompt_mask"]
    return given


def never_writing(model: Any, token: int) -> None:
    """Let transformers' `generate` of a model never write a token, such as the one that stands for parts of
    pictures: read again without a cache, one that was written asks for a picture that is not there."""
    settings = copy.deepcopy(model.generation_config)
    settings.suppress_tokens = sorted({*(settings.suppress_tokens or ()), token})
    model.generation_config = settings


def _marks_suppressed(model: Any) -> list[int] | None:
    """Its image token where `never_writing` was told that, as whoever loads the folder has it."""
    said, mark = model.generation_config.suppress_tokens or (), getattr(model.config, "image_token_id", None)
    return [int(mark)] if mark is not None and mark in said else None


def ends_of(model: Any) -> list[int]:
    """The tokens that end what it writes, by its generation_config.json, else by its config.json, of a model
    of several parts by its decoder's there."""
    for config in (model.generation_config, model.config, _decoder(model.config)):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return [int(each) for each in (found if isinstance(found, list | tuple) else [found])]
    return []


def left_padded(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """`text` (B, L) int64 and `text_mask` (B, L) bool of rows of unlike lengths, padding before them."""
    length = max(map(len, rows))
    text = torch.zeros(len(rows), length, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, ids in enumerate(rows):
        assert ids, "something is gone on with"
        text[row, length - len(ids) :], mask[row, length - len(ids) :] = torch.tensor(ids), True
    return {"text": text, "text_mask": mask}


def check_drawing(temperature: float, top_p: float) -> list[str]:
    """What is wrong with them, in words."""
    problems = [] if temperature >= 0 else [f"temperature is {temperature}; write 0 (the likeliest) or more"]
    return problems + ([] if 0 < top_p <= 1 else [f"top_p is {top_p}; write more than 0, at most 1"])


def on_our_kernels(model: Any) -> contextlib.AbstractContextManager[Any]:
    """Within it the scans and convolutions of transformers' Mamba-2 are ours: its own need libraries that are
    seldom there, and are slow without them. Nothing for a model, or a decoder of one, that has none."""
    from transmamba_kernels import patch_transformers
    from transmamba_kernels.transformers_patch import MODELS

    kinds = {getattr(config, "model_type", None) for config in (model.config, _decoder(model.config))}
    mine = [kind for kind in MODELS if kind in kinds]
    return patch_transformers(mine) if mine else contextlib.nullcontext()


def _decoder(config: Any) -> Any:
    return getattr(config, "text_config", None)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards every submodule's mode is as before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def _plainly(model: Any) -> Iterator[None]:
    """Without its own generation settings, which transformers puts wherever a call leaves one out."""
    from transformers import GenerationConfig

    own = model.generation_config
    if own is None:
        raise UserError(f"{type(model).__name__} cannot generate")
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
