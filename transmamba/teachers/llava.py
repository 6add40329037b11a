"""LLaVA of Hugging Face as a teacher: an image tower, a connector, and a decoder that reads both (arXiv
2304.08485, 2310.03744)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from ..config.registry import TEACHERS
from ..core.layout import Spliced as SplicedLayout
from ..core.preprocessing import PicturesAndText
from ..ecosystems import decoders
from ..ecosystems import transformers as library
from ..ecosystems.fewer_tokens import OURS, means_told, tokens_told, with_tokens
from ..ecosystems.sources import Source, read_source
from ..ecosystems.vision_language import LLAVA, llava_preprocessing
from ..errors import UserError
from ..views.embeddings import Connector, Spliced, TokenEmbedding
from ..views.heads import LanguageHead
from ..views.view import Tower, View
from .causal_lm import check_type
from .causal_lm_view import as_transformers, blocks_of, decoder_tower
from .check import Original, affine
from .hf_clip_view import image_tower
from .of_module import OfModule
from .teacher import Teacher, refuse
from .writing import Writer

_CLASS = "LlavaForConditionalGeneration"
# of a student of ours that reads fewer tokens of a picture, and its model_type; it may have cross-Mamba, too
_POOLED, _POOLED_TYPE = "CrossLlavaForConditionalGeneration", "transmamba_llava"
# what reads the tokens of the tower: all of them, or all but the first
_STRATEGIES = ("default", "full")
_TOWERS = ("clip_vision_model", "siglip_vision_model")


@TEACHERS.register("llava")
@dataclass(frozen=True, kw_only=True)
class Llava(OfModule):
    """A LLaVA of Hugging Face: a CLIP or SigLIP tower, a connector of two linears, and a decoder that
    `causal_lm` reads; in its own precision. With a tokenizer beside it, it reads questions.

    model: an id, or a folder with config.json and safetensors
    revision: branch, tag or commit on the Hub
    image_tokens: of a picture, a square number: the patches averaged over so many cells before the connector,
        though it has not learnt to read these; left out, as many as it has
    """

    model: str
    revision: str | None = None
    image_tokens: int | None = None

    def described(self, module: nn.Module) -> Teacher:
        """With the processor and the tokenizer of its folder or repository."""
        model: Any = module
        source = read_source(self.model, revision=self.revision)
        teacher = Llava.describe(model, source=self.model)
        teacher.preprocessing = llava_preprocessing(
            model.config, str(source.folder or source.repo), source.revision
        )
        assert isinstance(teacher.writer, Writer), "describe has made it"
        # what the view does not hold is read once more when it is to write
        teacher.writer = teacher.writer.read_by(self.load, _with_words(teacher.preprocessing))
        return teacher

    def load(self) -> nn.Module:
        from transformers import AutoModelForImageTextToText

        source = self._checked()
        if _is_pooled(source):
            student: Any = library.load(source)
            return cast(nn.Module, student.stock())
        model = decoders.load_decoder(source, AutoModelForImageTextToText)
        return with_tokens(model, self.image_tokens)

    def empty(self) -> nn.Module:
        from transformers import AutoModelForImageTextToText

        source = self._checked()
        if _is_pooled(source):
            student: Any = library.empty_of_any_type(source)
            return cast(nn.Module, student.stock())
        model = decoders.empty_decoder(source, AutoModelForImageTextToText)
        return with_tokens(model, self.image_tokens)

    def _check_pooled(self, source: Source) -> None:
        """Raises UserError for a student of ours with other parts than a teacher's, and for tokens of a
        picture beside its own."""
        empty: Any = library.empty_of_any_type(source)
        config = empty.config
        if self.image_tokens not in (None, tokens_told(config)):
            raise UserError(
                f"teacher.image_tokens is {self.image_tokens}, but {self.model!r} reads "
                f"{tokens_told(config)} of a picture; leave it out"
            )
        check_type(config.text_config)
        _check_tower(config)

    def _checked(self) -> Source:
        source = read_source(self.model, revision=self.revision)
        if _is_pooled(source):
            self._check_pooled(source)
            return source
        if (kind := source.config.get("model_type")) != LLAVA:
            raise UserError(
                f"teacher llava reads a LLaVA of transformers (model_type {LLAVA}), and {self.model!r} is of "
                f"model_type {kind}; write another model, or the teacher auto, which reads each kind"
            )
        config = decoders.read_config(source)
        check_type(config.text_config)
        _check_tower(config)
        return source

    @staticmethod
    def recognise(source: Source) -> Llava | None:
        known = source.config.get("model_type") == LLAVA or _is_pooled(source)
        return Llava(model=source.text, revision=source.revision) if known else None

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        model: Any = module
        pooled = type(module).__name__ == _POOLED and model.config.transmamba["cross"] is None
        return pooled or type(module).__name__ == _CLASS

    @staticmethod
    def describe(module: nn.Module, *, source: str) -> Teacher:
        model: Any = module
        origin = library.origin(model)
        view = llava_view(model)
        preprocessing = llava_preprocessing(model.config, library.folder_of(model))
        teacher = Teacher(
            view,
            source=source,
            preprocessing=preprocessing,
            num_params=sum(p.numel() for p in module.parameters()),
            licence=origin.licence,
            base_model=origin.base_model,
        )
        words = _with_words(preprocessing)
        teacher.writer = Writer(lambda: copy.deepcopy(module), words, module, teacher.view)
        return teacher

    @staticmethod
    def original(module: nn.Module) -> Original:
        model: Any = module

        def outputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            made = model(**as_transformers(inputs), pixel_values=inputs.get("image"), use_cache=False)
            return {"logits": made.logits}

        vision = _vision(model)
        kept = vision.encoder.layers[: _blocks_read(model)]
        return Original(
            model, outputs, {"image": list(kept), "decoder": blocks_of(model.model.language_model)}
        )


def llava_view(model: Any) -> View:
    """The view; its tensors are the model's own. Raises UserError for what it cannot express."""
    config = model.config
    _check_tower(config)
    strategy = config.vision_feature_select_strategy
    if strategy not in _STRATEGIES:
        raise refuse("connector", f"known: {', '.join(_STRATEGIES)}", vision_feature_select_strategy=strategy)
    image = _read_until(image_tower(_vision(model)), _blocks_read(model))
    special = [name for name, _ in image.layout.special]  # type: ignore[attr-defined]
    if strategy == "default" and special != ["cls"]:
        raise refuse(
            "connector",
            "it leaves out the first token, which is a patch here, for the tower has no class token",
            vision_feature_select_strategy=strategy,
        )
    projector = model.model.multi_modal_projector
    first, last = (affine(getattr(projector, name), name) for name in ("linear_1", "linear_2"))
    connector = Connector((first, last), projector.act, means_told(config))
    decoder = decoder_tower(model.model.language_model)
    words = decoder.embedding
    assert isinstance(words, TokenEmbedding), "a decoder begins with words"
    embedding = Spliced(words, connector, config.image_token_id, special=strategy == "full")
    head = affine(model.lm_head, "lm_head")
    towers = {
        "image": image,
        "decoder": replace(decoder, embedding=embedding, layout=SplicedLayout(("image", "text"))),
    }
    tied = head.weight is words.weight
    heads = {"decoder": LanguageHead(head, tied=tied)}
    return View(towers, heads, config=config.to_dict())


def _is_pooled(source: Source) -> bool:
    """Whether it is a student of ours that reads means of its patches, and has no cross-Mamba, which no view
    has."""
    said = source.config.get(OURS)
    kind = source.config.get("model_type")
    return kind == _POOLED_TYPE and isinstance(said, dict) and said.get("cross") is None


def _with_words(preprocessing: Any) -> PicturesAndText | None:
    return preprocessing if isinstance(preprocessing, PicturesAndText) else None


def _check_tower(config: Any) -> None:
    """Raises UserError for a tower that is neither CLIP's nor SigLIP's."""
    kind = config.vision_config.model_type
    if kind not in _TOWERS:
        raise refuse("image tower", f"known: {', '.join(_TOWERS)}", model_type=kind)


def _vision(model: Any) -> Any:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower)  # before transformers 5.2x there is one more module


def _blocks_read(model: Any) -> int:
    """How many blocks of the tower the connector's tokens have gone through."""
    layer, count = model.config.vision_feature_layer, len(_vision(model).encoder.layers)
    if isinstance(layer, list | tuple) and len(layer) == 1:
        (layer,) = layer  # which transformers reads as that one
    if not isinstance(layer, int):
        raise refuse("connector", "it reads several layers at once", vision_feature_layer=layer)
    # hidden_states: before the first block, and after each
    found = layer if layer >= 0 else count + 1 + layer
    if not 0 <= found <= count:
        raise refuse("connector", f"the tower has {count} blocks", vision_feature_layer=layer)
    return found


def _read_until(tower: Tower, blocks: int) -> Tower:
    """The tower's first blocks, whose stream is read as it is, without a norm."""
    end = tower.ends[blocks - 1] + 1 if blocks else 0
    return replace(tower, sublayers=tuple(tower.sublayers[:end]), norm=None)
