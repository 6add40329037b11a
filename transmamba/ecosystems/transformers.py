"""Hugging Face transformers: how a vision transformer of its is recognised, loaded, saved and described."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..config.registry import STUDENTS
from ..core.card import Card
from ..core.preprocessing import PicturesAndText, Preprocessing
from ..core.text import TextOnly
from ..errors import UserError
from . import decoders, texts
from .language_tokenizer import language_preprocessing
from .origin import Origin, origin_in_hand
from .processor import NESTED, hugging_face_preprocessing, image_processor
from .sources import Source
from .unknown import unknown_type
from .vision_language import LLAVA, llava_card, llava_preprocessing, load_llava

logger = logging.getLogger("transmamba.teacher")

library = "transformers"
MODEL_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers")
_DINOV2 = ("dinov2", "dinov2_with_registers")
DUAL_ENCODERS = ("clip", "siglip")
# made anew by each load of a backbone, and read by nobody who takes its last stream
_UNREAD = ("mask_token", "pooler.")
# what goes with the number of classes: its tensors are made anew where that differs
_HEADS = ("classifier", "cls_classifier", "distillation_classifier")
# a tensor of a Transformer's block, by its name
_IN_A_BLOCK = re.compile(r"\blayers?\.\d+\.")


def recognise(source: Source) -> bool:
    return decoders.is_gguf(source) or ("model_type" in source.config and "architecture" not in source.config)


def load(source: Source) -> nn.Module:
    """A student of ours that is saved as a stock class comes back as ours."""
    if (ours := _student_of(source)) is not None:
        student: nn.Module = ours.load(source)
        return student
    if decoders.is_decoder(source):
        return decoders.load_decoder(source)
    if source.config.get("model_type") == LLAVA:
        return load_llava(source)
    return load_hugging_face(str(source.folder or source.repo), source.revision)


def _student_of(source: Source) -> Any:
    """The registered student that a config.json says it is; None for a model of transformers alone."""
    said = source.config.get("transmamba")
    name = said.get("student") if isinstance(said, dict) else None
    if not isinstance(name, str) or name not in STUDENTS:
        return None
    return STUDENTS[name]


def holds(model: nn.Module) -> bool:
    return hasattr(model, "save_pretrained") and hasattr(model, "config")


def preprocessing(model: nn.Module) -> Preprocessing | PicturesAndText | TextOnly:
    """Of its images; of a language model its tokenizer; of a LLaVA both."""
    built: Any = model
    if getattr(built, "reads", None) is not None:  # a student of ours, which keeps it
        return cast(PicturesAndText | TextOnly, built.reads)
    if built.config.model_type == LLAVA:
        return llava_preprocessing(built.config, getattr(built, "name_or_path", ""))
    if not hasattr(image_config(built.config), "image_size"):
        name = getattr(built, "name_or_path", "") or getattr(built.config, "_name_or_path", "")
        if (words := language_preprocessing(name, built.config)) is not None:
            return words
        raise UserError(
            f"{type(model).__name__} reads no images, and no tokenizer lies beside it; write a model that "
            "classifies images, or a language model's folder with its tokenizer.json"
        )
    return hugging_face_preprocessing(
        image_config(built.config), getattr(built, "name_or_path", ""), any_size=takes_any_size(built.config)
    )


def image_config(config: Any) -> Any:
    """What says the size of the images: of a dual encoder, its image tower's."""
    return config.vision_config if config.model_type in DUAL_ENCODERS else config


def takes_any_size(config: Any) -> bool:
    """Whether the model resizes its positions to whatever picture it is given, as DINOv2 does."""
    return config.model_type in _DINOV2


def load_hugging_face(name: str, revision: str | None = None, num_classes: int | None = None) -> nn.Module:
    """A ViT, DeiT or DINOv2 from safetensors only: a classifier where the checkpoint has a trained head, else
    the backbone alone; a CLIP or SigLIP whole; with `num_classes` a classifier whose head is made anew where
    it differs. Raises UserError in one line."""
    with decoders.explained(name):
        return _load(name, revision, num_classes).eval()


def empty_hugging_face(name: str, revision: str | None = None) -> nn.Module:
    """The same on the meta device, without weights: of the class that its configuration names, else of a
    classifier. Raises UserError in one line."""
    with decoders.explained(name, tried="read"):
        config = _read_config(name, revision)
        dual = config.model_type in DUAL_ENCODERS
        if config.model_type not in MODEL_TYPES and not dual:
            raise unknown_type(name, config.model_type)
        usual = "AutoModel" if dual else "AutoModelForImageClassification"
        return _empty(config, usual if dual else _class_named(config, usual))


def empty_of_any_type(source: Source) -> nn.Module:
    """A model of any type that transformers knows, on the meta device. Raises UserError in one line."""
    if (ours := _student_of(source)) is not None:
        with torch.device("meta"):
            student: nn.Module = ours.empty(source)
        return student.eval()
    config = decoders.read_config(source)
    with decoders.explained(source.text, tried="read"):
        return _empty(config, _class_named(config, "AutoModel"))


def _class_named(config: Any, usual: str) -> str:
    """The class that a configuration names, where transformers has it."""
    import transformers

    named = (config.architectures or [usual])[0]
    return named if hasattr(transformers, named) else usual


def _empty(config: Any, name: str) -> nn.Module:
    import transformers

    kind = getattr(transformers, name)
    with torch.device("meta"):
        made: Any = (kind._from_config if hasattr(kind, "_from_config") else kind.from_config)(config)
    return made.eval()


def _read_config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig, PretrainedConfig

    written, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    decoders.refuse_unsaid_parts(name, written)
    decoders.refuse_own_code(name, written)
    return AutoConfig.from_pretrained(name, revision=revision)


def _load(name: str, revision: str | None, num_classes: int | None) -> Any:
    from transformers import (
        AutoModel,
        AutoModelForImageClassification,
        DeiTForImageClassificationWithTeacher,
    )

    config = _read_config(name, revision)
    dual = config.model_type in DUAL_ENCODERS and num_classes is None
    if config.model_type not in MODEL_TYPES and not dual:
        raise unknown_type(name, config.model_type)
    # the distilled DeiT has two heads; AutoModel would drop one of them
    with_teacher = "DeiTForImageClassificationWithTeacher" in (config.architectures or [])
    loader: Any = DeiTForImageClassificationWithTeacher if with_teacher else AutoModelForImageClassification
    given: dict[str, Any] = dict(revision=revision, use_safetensors=True, output_loading_info=True)
    given |= dict(ignore_mismatched_sizes=True)  # told below, or made anew
    if num_classes is not None:
        model, found = loader.from_pretrained(name, num_labels=num_classes, **given)
        _refuse_drawn(name, found, but=_HEADS)
        _refuse_left_over(name, found)
        return model
    model, found = (AutoModel if dual else loader).from_pretrained(name, **given)
    if any("classifier" in key for key in found["missing_keys"]):
        # its head would be random numbers, others at each load
        logger.warning("%s has no trained classifier: it is taken without a head, for its features", name)
        pooler = {} if config.model_type in _DINOV2 else {"add_pooling_layer": False}
        model, found = AutoModel.from_pretrained(name, **pooler, **given)
    _refuse_drawn(name, found)
    _refuse_left_over(name, found)
    return model


def _refuse_drawn(name: str, found: Mapping[str, Any], but: Sequence[str] = ()) -> None:
    """Raises UserError for tensors that loading has drawn, being of another shape or missing.

    but: the submodules that are meant to be made anew
    """
    wrong = [each for each in found["mismatched_keys"] if each[0].split(".")[0] not in but]
    missing = [
        key
        for key in found["missing_keys"]
        if key.split(".")[0] not in but and not any(word in key for word in _UNREAD)
    ]
    shapes, lacking = decoders.other_shapes(wrong), decoders.unplaced(missing)
    said = "; it ".join(([shapes] if shapes else []) + ([f"lacks {lacking}"] if lacking else []))
    if said:
        raise UserError(f"Hugging Face model {name!r}{':' if shapes else ''} {said}")


def _refuse_left_over(name: str, found: Mapping[str, Any]) -> None:
    """Raises UserError for a part of a block that has no place. Heads and poolers may be left over."""
    odd = decoders.unplaced(key for key in found["unexpected_keys"] if _IN_A_BLOCK.search(key))
    if odd:
        raise UserError(f"Hugging Face model {name!r} holds what its config has no place for: {odd}")


def origin(model: Any) -> Origin:
    """Whose the weights of a model in hand are, by the model card where it was loaded from; without a
    network."""
    name = getattr(model, "name_or_path", "") or getattr(model.config, "_name_or_path", "")
    return origin_in_hand(name)


def folder_of(model: Any) -> str:
    """Where a model in hand was loaded from, if that is a folder: it needs no network. Empty for none."""
    name = getattr(model, "name_or_path", "") or getattr(model.config, "_name_or_path", "")
    return name if name and Path(name).is_dir() else ""


def class_names(config: Any) -> tuple[str, ...] | None:
    """Its id2label, but for the LABEL_0, LABEL_1 ... that transformers fills in."""
    named = getattr(config, "id2label", None) or {}
    names = [str(named.get(k, named.get(str(k), ""))) for k in range(len(named))]
    if not names or not all(names) or all(name == f"LABEL_{k}" for k, name in enumerate(names)):
        return None
    return tuple(names)


def save(model: nn.Module, folder: Path, preprocessing: Preprocessing | None = None) -> None:
    """Write the model and its image processor: `from_pretrained(FOLDER)`."""
    built: Any = model
    folder.mkdir(parents=True, exist_ok=True)
    built.save_pretrained(folder)
    if isinstance(preprocessing, Preprocessing) and not (folder / NESTED).is_file():  # words are its own
        image_processor(preprocessing).save_pretrained(folder)


_SNIPPET = """from transformers import AutoImageProcessor, {loader}

processor = AutoImageProcessor.from_pretrained("OWNER/NAME")
model = {loader}.from_pretrained("OWNER/NAME").eval()
"""


def card(model: nn.Module) -> Card:
    built: Any = model
    if hasattr(built.config, "text_config") and built.config.model_type not in DUAL_ENCODERS:
        found = getattr(built, "origin", None) or origin(built)
        return llava_card(built.config, found, getattr(built, "chats", True))
    own_code = hasattr(built.config, "auto_map") and hasattr(built.config, "transmamba")  # a student of ours
    if own_code or decoders.is_language(built.config.model_type):
        found = getattr(built, "origin", None) or origin(built)
        return texts.card(found, own_code, texts.versions_of(built.config))
    classifies = "ForImageClassification" in type(model).__name__
    dual = built.config.model_type in DUAL_ENCODERS
    loader = "AutoModelForImageClassification" if classifies else "AutoModel"
    features = "zero-shot-image-classification" if dual else "image-feature-extraction"
    found = origin(built)
    return Card(
        library=library,
        pipeline_tag="image-classification" if classifies else features,
        snippet=_SNIPPET.format(loader=loader),
        licence=found.licence,
        base_model=found.base_model,
    )
