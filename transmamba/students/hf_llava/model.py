"""transformers' own LLaVA, with what a recipe asks of the model that it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.output import Captures, Context, Logits, Output
from ...core.preprocessing import PicturesAndText, Preprocessing
from ...ecosystems import decoders
from ...ecosystems.generation import generate
from ...ecosystems.origin import Origin, origin_of
from ...ecosystems.processor import image_processor
from ...ecosystems.sources import Source
from ...ecosystems.texts import tokenizer_beside
from ...ecosystems.vision_language import llava_preprocessing, llava_processor
from ...errors import UserError
from ...subcloning.plan import Dropped, Take
from ..spread import is_spread

# the key of config.json that says which student a folder holds
OURS = "transmamba"
_GROUPS = {
    "image": "model.model.vision_tower.",
    "connector": "model.model.multi_modal_projector.",
    "decoder": "model.model.language_model.",
    "head": "model.lm_head.",
}


class LlavaModel(nn.Module):
    """A LlavaForConditionalGeneration that reads `image` (P, C, H, W) of all rows, `text` (B, L) and
    its mask.

    It has no towers to align: it is trained by its words alone, with a teacher's beside them or without.

    model: transformers'; words: its tokenizer of transformers, None for none; reads: as a task asks for it
    """

    def __init__(
        self, model: Any, words: Any, reads: Preprocessing | PicturesAndText, origin: Origin | None = None
    ) -> None:
        super().__init__()
        self.model, self.words, self.reads = model, words, reads
        self.origin = origin or Origin()

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def chats(self) -> bool:
        """Whether its tokenizer has a chat template."""
        return getattr(self.words, "chat_template", None) is not None

    @property
    def vocabulary(self) -> int:
        return int(self.config.text_config.vocab_size)

    @property
    def name_or_path(self) -> str:
        """Where it was loaded from; empty for one that was put together."""
        return str(self.model.name_or_path or "")

    @property
    def towers(self) -> dict[str, Any]:
        """None: there is nothing of it that takes a teacher's place."""
        return {}

    def run(self, inputs: Mapping[str, Tensor], captures: Captures | None = None) -> Output:
        """The logits of every token. Raises UserError where the text has another number of places for
        pictures than they take."""
        context = Context.of(inputs)
        if context.segments is not None:
            raise UserError("hf_llava reads one text a row; write task.packed: false")
        image, blank = inputs.get("image"), None
        if image is None and (is_spread(self) or (self.training and torch.is_grad_enabled())):
            blank = self._nothing()  # before the decoder, as pictures are
        made = self.model.model(
            input_ids=inputs["text"],
            attention_mask=None if context.mask is None else context.mask.long(),
            position_ids=context.positions,
            pixel_values=image,
            use_cache=False,
        )
        x = made.last_hidden_state if blank is None else made.last_hidden_state + blank
        return Output(logits=Logits(x, self.model.lm_head))

    def _nothing(self) -> Tensor:
        """0 times what is made of a black picture: every rank has the same gradients and calls the same
        units, also one that has no pictures."""
        vision, like = self.config.vision_config, self.model.model.multi_modal_projector.linear_1.weight
        size = (1, vision.num_channels, vision.image_size, vision.image_size)
        black = torch.zeros(size, dtype=like.dtype, device=like.device)
        made = self.model.model.get_image_features(pixel_values=black)
        seen = getattr(made, "pooler_output", made)  # older versions give the features themselves
        return 0.0 * torch.stack([each.sum() for each in seen]).sum()

    def forward(self, text: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of text (B, L)."""
        logits = self.run({"text": text, **({} if image is None else {"image": image})}).logits
        assert logits is not None, "a language model"
        return logits()

    def generate(self, inputs: Mapping[str, Tensor], limit: int) -> Tensor:
        """The likeliest words after `text` (B, L), whose padding lies before it: (B, at most limit)."""
        end = getattr(self.words, "eos_token_id", None)
        return generate(self.model, inputs, limit, ends=() if end is None else (end,))

    def plan(self, view: Any, select: Any) -> Iterator[Take | Dropped]:
        """Nothing: its weights are its own."""
        raise UserError("student hf_llava has weights of its own; write init: null")

    def groups(self) -> dict[str, Callable[[str], bool]]:
        """`head` is the words' own table where both are one."""
        return {name: partial(_begins, begin) for name, begin in _GROUPS.items()}

    def units(self) -> list[nn.Module]:
        tower = getattr(self.model.model.vision_tower, "vision_model", self.model.model.vision_tower)
        return [*tower.encoder.layers, *self.model.model.language_model.layers]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()

    def carry(self, preprocessing: Any, licence: str | None, base_model: str | None) -> None:
        """Nothing of a teacher: it reads as it did."""

    def save_pretrained(self, folder: str | Path) -> None:
        """What AutoModelForImageTextToText and AutoProcessor load."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        setattr(self.model.config, OURS, {"student": "hf_llava"})
        with decoders.explained(str(folder), tried="saved"):
            self.model.save_pretrained(folder)
        if self.words is not None and isinstance(self.reads, PicturesAndText):
            vision = self.config.vision_config
            llava_processor(
                self.words,
                image_processor(self.reads.pictures),
                self.reads.image_token,
                patch=vision.patch_size,
                strategy=self.config.vision_feature_select_strategy,
                beyond_patches=int(vision.model_type == "clip_vision_model"),
            ).save_pretrained(folder)


def _begins(begin: str, name: str) -> bool:
    return name.startswith(begin)


def load(source: Source) -> LlavaModel:
    """What a folder or a repository holds, in evaluation mode."""
    from transformers import AutoModelForImageTextToText

    _require(source)
    model = decoders.load_decoder(source, AutoModelForImageTextToText)
    return LlavaModel(model, tokenizer_beside(source), reads_of(source), origin_of(source)).eval()


def empty(source: Source) -> LlavaModel:
    """The same without numbers."""
    from transformers import AutoModelForImageTextToText

    _require(source)
    model = decoders.empty_decoder(source, AutoModelForImageTextToText)
    return LlavaModel(model, None, reads_of(source)).eval()


def reads_of(source: Source) -> Preprocessing | PicturesAndText:
    """How a LLaVA's pictures and texts are read, found out without its weights."""
    _require(source)
    name = str(source.folder or source.repo)
    return llava_preprocessing(decoders.read_config(source), name, source.revision)


def _require(source: Source) -> None:
    if source.config.get("model_type") != "llava":
        raise UserError(
            f"student.model is {source.text!r}, of model_type {source.config.get('model_type')}; hf_llava "
            "takes a LLaVA (model_type llava)"
        )
