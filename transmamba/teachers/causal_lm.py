"""Language models of Hugging Face as teachers: Llama and its kin, and GPT-2."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from ..config.registry import TEACHERS
from ..ecosystems import decoders
from ..ecosystems import transformers as library
from ..ecosystems.language_tokenizer import language_preprocessing
from ..ecosystems.sources import Source, read_source
from .causal_lm_view import MODEL_TYPES, as_transformers, base_of, blocks_of, check_layers, decoder_view
from .check import Original
from .of_module import OfModule
from .teacher import Teacher, refuse
from .writing import Writer

# what stands between others and the view
_WHY = {
    "gemma2": "it caps its logits and has norms after its sublayers",
    "gemma3_text": "it has norms after its sublayers",
    "phi3": "its projections are fused",
    "mixtral": "its MLPs are experts",
    "llava": "it is a LLaVA; write the teacher llava, or auto",
}


@TEACHERS.register("causal_lm")
@dataclass(frozen=True, kw_only=True)
class CausalLanguageModel(OfModule):
    """A Llama, Mistral, Qwen, SmolLM, Gemma or GPT-2 of Hugging Face, from safetensors or GGUF, in its own
    precision.

    model: an id, a folder with config.json and safetensors, or a .gguf file
    revision: branch, tag or commit on the Hub
    """

    model: str
    revision: str | None = None

    def described(self, module: nn.Module) -> Teacher:
        """With the tokenizer of its folder, repository or file."""
        model: Any = module
        teacher = CausalLanguageModel.describe(module, source=self.model)
        source = read_source(self.model, revision=self.revision)
        teacher.preprocessing = language_preprocessing(_place(source), model.config, source.revision)
        assert isinstance(teacher.writer, Writer), "describe has made it"
        # what the view does not hold is read once more when it is to write
        teacher.writer = teacher.writer.read_by(self.load, teacher.preprocessing)
        return teacher

    def load(self) -> nn.Module:
        return decoders.load_decoder(self._checked())

    def empty(self) -> nn.Module:
        return decoders.empty_decoder(self._checked())

    def _checked(self) -> Source:
        """Its source, after a look at the configuration: before weights are fetched."""
        source = read_source(self.model, revision=self.revision)
        check_type(decoders.read_config(source), repr(self.model))
        return source

    @staticmethod
    def recognise(source: Source) -> CausalLanguageModel | None:
        return (
            CausalLanguageModel(model=source.text, revision=source.revision)
            if decoders.is_decoder(source)
            else None
        )

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        return getattr(getattr(module, "config", None), "model_type", None) in MODEL_TYPES and type(
            module
        ).__name__.endswith(("ForCausalLM", "LMHeadModel"))

    @staticmethod
    def describe(module: nn.Module, *, source: str) -> Teacher:
        origin, model = library.origin(module), cast(Any, module)
        preprocessing = language_preprocessing(library.folder_of(model), model.config)
        teacher = Teacher(
            decoder_view(module),
            source=source,
            preprocessing=preprocessing,
            num_params=sum(p.numel() for p in module.parameters()),
            licence=origin.licence,
            base_model=origin.base_model,
        )
        teacher.writer = Writer(lambda: copy.deepcopy(module), preprocessing, module, teacher.view)
        return teacher

    @staticmethod
    def original(module: nn.Module) -> Original:
        model: Any = module

        def outputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"logits": model(**as_transformers(inputs), use_cache=False).logits}

        return Original(model, outputs, {"decoder": blocks_of(base_of(model))})


def _place(source: Source) -> str:
    """The folder, the id or the file that holds its tokenizer."""
    return str(source.folder or source.repo or source.file)


def check_type(config: Any, name: str = "decoder") -> None:
    """Raises UserError for a decoder that no view expresses, by its configuration."""
    kind = config.model_type
    check_layers(config)
    if kind not in MODEL_TYPES:
        why = f"{_WHY[kind]}; " if kind in _WHY else ""
        raise refuse(name, f"{why}known: {', '.join(MODEL_TYPES)}", model_type=kind)
