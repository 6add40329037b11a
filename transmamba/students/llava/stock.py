"""A LLaVA student as transformers' own model, and its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...ecosystems import decoders
from ...ecosystems.adapters import tuned_of
from ...ecosystems.generation import never_writing
from ...ecosystems.sources import Source
from ...ecosystems.vision_language import llava_preprocessing
from ..hybrid_lm.own_class import write_code
from ..hybrid_lm.stock import SHARD
from .own_class import AUTO_MAP, OWN, config_class, model_class
from .processor import processor_of

if TYPE_CHECKING:
    from .model import LlavaStudent

# this module's parts -> the stock class's, the first that fits
_NAMES = (
    ("cross.", "model.cross."),
    ("vision_tower.stock.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower.timm_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
)


def stock_name(name: str) -> str:
    """What the stock class calls a student's tensor."""
    for mine, theirs in _NAMES:
        if name.startswith(mine):
            return theirs + name.removeprefix(mine)
    raise AssertionError(f"{name} is in none of a student's parts")


def as_stock(student: LlavaStudent) -> Any:
    """transformers' model of the same tensors, not copies, in the student's mode. Loaded strictly. An adapter
    on the student is on it, too."""
    tuned = tuned_of(student)
    if tuned is not None:
        return tuned.onto(_stock_of(student, tuned.base_state()), lambda name: stock_name(f"{name}.")[:-1])
    return _stock_of(student, student.state_dict(keep_vars=True))


def _stock_of(student: LlavaStudent, tensors: Mapping[str, Tensor]) -> Any:
    from accelerate import init_empty_weights

    kind = model_class(student.config.model_type)
    with init_empty_weights(include_buffers=False):
        model: Any = getattr(kind, "from_config", kind)(student.config)
    state = {stock_name(name): tensor for name, tensor in tensors.items()}
    model.load_state_dict({**state, **_unread(student, model, state)}, strict=True, assign=True)
    if student.config.text_config.tie_word_embeddings:
        model.tie_weights()
    model.to(next(student.parameters()).device)  # what it computes from its configuration
    if student.beside.generation is not None:
        model.generation_config = student.beside.generation
    never_writing(model, student.config.image_token_id)
    return model.train(student.training)


def _unread(student: LlavaStudent, model: Any, state: dict[str, Any]) -> dict[str, Tensor]:
    """What the class has beyond the student, which nobody reads: the norm after a kept tower's last layer, as
    norms begin, and the layer of zeros of a decoder without attention."""
    like = next(student.language_model.parameters())
    found = {}
    for name, tensor in model.state_dict().items():
        if name not in state:
            one = "post_layernorm.weight" in name
            made = torch.ones if one else torch.zeros
            found[name] = made(tensor.shape, dtype=like.dtype, device=like.device)
    return found


def save(student: LlavaStudent, folder: Path) -> None:
    """The folder that `AutoModelForImageTextToText.from_pretrained(FOLDER)` loads, of our own class with
    `trust_remote_code=True`, in files of at most `SHARD`; with its processor where it has a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    with decoders.explained(str(folder), tried="saved"):  # without its progress bars
        as_stock(student).save_pretrained(folder, max_shard_size=SHARD)
    if student.config.model_type == OWN:
        write_code(folder, AUTO_MAP)
    processor = processor_of(student)
    if processor is not None:
        processor.save_pretrained(folder)


def empty(source: Source, student: type[LlavaStudent]) -> LlavaStudent:
    """The student that a configuration describes, at its start, and how it reads."""
    made = student(decoders.read_config(source, config_class(source.config.get("model_type"))))
    made.reads = _reads(made.config, source)
    return made


def load(source: Source, student: type[LlavaStudent]) -> LlavaStudent:
    """What `save` wrote, in evaluation mode. Raises UserError for a folder that is damaged."""
    from ...ecosystems.origin import origin_of
    from ...ecosystems.texts import beside

    model: Any = decoders.load_decoder(source, model_class(source.config.get("model_type")))
    made, state = student(model.config), model.state_dict()
    own = {name: state[stock_name(name)] for name in made.state_dict()}
    made.load_state_dict(own, strict=True, assign=True)
    if model.config.text_config.tie_word_embeddings:
        words: Any = made.language_model
        words.lm_head.weight = words.model["embed_tokens"].weight
    made.origin, made.beside = origin_of(source), beside(source)
    made.reads = _reads(model.config, source)
    return made.eval()


def _reads(config: Any, source: Source) -> Any:
    return llava_preprocessing(config, str(source.folder or source.repo), source.revision)
