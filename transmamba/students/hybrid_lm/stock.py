"""A hybrid as transformers' own model, and its folder."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...ecosystems import decoders
from ...ecosystems.adapters import tuned_of
from ...ecosystems.sources import Source
from ...errors import UserError
from ..spread import is_spread
from .architectures import OWN, null_layers
from .own_class import own_config, own_model, write_code
from .same_writer import check_same

if TYPE_CHECKING:
    from .model import HybridStudent


# of a file of weights
SHARD = "5GB"


def as_stock(student: HybridStudent) -> Any:
    """transformers' model, or that of our own class, of the same tensors, not copies, in the student's mode.
    Loaded strictly. An adapter on the student is on it, too."""
    tuned = tuned_of(student)
    if tuned is not None:
        return tuned.onto(_stock_of(student, tuned.base_state()))
    return _stock_of(student, student.state_dict(keep_vars=True))


def _stock_of(student: HybridStudent, tensors: Mapping[str, Tensor]) -> Any:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    make = own_model() if _is_own(student.config.model_type) else AutoModelForCausalLM.from_config
    with init_empty_weights(include_buffers=False):
        model: Any = make(student.config)
    state = {**tensors, **_beyond(student, model)}
    model.load_state_dict(state, strict=True, assign=True)
    if student.config.tie_word_embeddings:
        model.tie_weights()
    model.to(next(student.parameters()).device)  # what it computes from its configuration
    if student.beside.generation is not None:
        model.generation_config = student.beside.generation
    return model.train(student.training)


def write(student: Any, inputs: Mapping[str, Tensor], limit: int) -> Tensor:
    """What transformers' model of a student (its `stock`) writes, (B, at most limit) tokens: see
    `ecosystems.generation.generate`. Raises UserError for a student that is sharded over processes, and where
    the installed transformers makes another model of it."""
    from ...ecosystems.generation import generate

    if is_spread(student):
        raise UserError(
            "a student whose weights are sharded over processes does not write; in a recipe write "
            "task.writing: final or never (task questions), or leave task.generated out (task language), and "
            "measure its folder afterwards: transmamba evaluate RUN"
        )
    words, made = student.beside.tokenizer, getattr(student.reads, "text", None)
    end = made.eos if made is not None else getattr(words, "eos_token_id", None)
    return generate(_written_by(student, inputs), inputs, limit, ends=() if end is None else (end,))


# what writes for each student, with what it was made of: making it takes as long as writing several words
_WRITERS: weakref.WeakKeyDictionary[Any, tuple[dict[str, Any], Any]] = weakref.WeakKeyDictionary()


def _written_by(student: Any, inputs: Mapping[str, Tensor]) -> Any:
    """The student's `stock`, made anew where a tensor of it is another one than it was, and then held against
    the student on the first rows. Raises UserError where it is another model."""
    made_of = {**student.state_dict(keep_vars=True), "beside": student.beside}
    known, model = _WRITERS.get(student, ({}, None))
    if known.keys() != made_of.keys() or any(known[name] is not each for name, each in made_of.items()):
        model = student.stock().to(next(student.parameters()).device)
        check_same(student, model, inputs)
        _WRITERS[student] = made_of, model
    return model.to(next(student.parameters()).device)


def _beyond(student: HybridStudent, model: Any) -> dict[str, Tensor]:
    """Zeros for each tensor that the class has beyond the student's: of its last layer where the student has
    none, and without any number where it has an MLP beside experts."""
    like = next(student.parameters())
    begins = f"model.layers.{student.num_layers}."
    return {
        name: torch.zeros(tensor.shape, dtype=like.dtype, device=like.device)
        for name, tensor in model.state_dict().items()
        if name.startswith(begins) or not tensor.numel()
    }


def save(student: HybridStudent, folder: Path) -> None:
    """The folder that `AutoModelForCausalLM.from_pretrained(FOLDER)` loads, of our own class with
    `trust_remote_code=True`; in files of at most `SHARD`."""
    folder.mkdir(parents=True, exist_ok=True)
    with decoders.explained(str(folder), tried="saved"):  # without its progress bars
        as_stock(student).save_pretrained(folder, max_shard_size=SHARD)
    if _is_own(student.config.model_type):
        write_code(folder)
    words = getattr(student.reads, "text", None)
    if student.beside.tokenizer is not None:
        student.beside.tokenizer.save_pretrained(folder)
    elif words is not None:
        words.save(folder)


def empty(source: Source, student: type[HybridStudent]) -> HybridStudent:
    """The student that a configuration describes, at its start."""
    ours = _is_own(source.config.get("model_type"))
    return student(decoders.read_config(source, own_config() if ours else None))


def load(source: Source, student: type[HybridStudent]) -> HybridStudent:
    """What `save` wrote, in evaluation mode; code that lies in the folder is not run. Raises UserError for a
    folder that is damaged."""
    from ...ecosystems.origin import origin_of
    from ...ecosystems.texts import beside

    ours = _is_own(source.config.get("model_type"))
    model: Any = decoders.load_decoder(source, own_model() if ours else None)
    made = student(model.config)
    depth = made.num_layers
    own = {
        name: tensor
        for name, tensor in _plain(model.state_dict()).items()
        if tensor.numel()
        and not any(
            name.startswith(f"model.layers.{depth + extra}.") for extra in range(null_layers(model.config))
        )
    }
    made.load_state_dict(own, strict=True, assign=True)
    if model.config.tie_word_embeddings:
        made.lm_head.weight = made.model["embed_tokens"].weight  # type: ignore[assignment]
    made.origin, made.beside = origin_of(source), beside(source)
    return made.eval()


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors: transformers puts an adapter that lies in the folder on it, as whoever reads
    the student shall (`ecosystems.find.load_model`)."""
    own = {name: tensor for name, tensor in state.items() if ".transmamba_adapters." not in name}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in own.items()}


def _is_own(model_type: Any) -> bool:
    return bool(model_type == OWN.model_type)
