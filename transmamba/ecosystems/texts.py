"""What lies beside a language model's weights: its tokenizer with the chat template, and how it generates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.card import Card
from ..errors import UserError
from . import decoders, hub
from .origin import Origin
from .sources import Source, read_source

_GENERATION = "generation_config.json"
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Beside:
    """tokenizer: of transformers; generation: a GenerationConfig; processor: of a model that reads pictures
    too. None where there is none."""

    tokenizer: Any = None
    generation: Any = None
    processor: Any = None


def beside(source: Source) -> Beside:
    """Of a folder, a repository or a GGUF file."""
    return Beside(tokenizer_beside(source), _generation(source), _processor(source))


def beside_named(name: str) -> Beside:
    """Of what a name means; nothing of one that means no model, such as that of a model in hand."""
    try:
        source = read_source(name)
    except UserError:
        return Beside()
    return Beside() if source.bare else beside(source)


def tokenizer_beside(source: Source) -> Any:
    """As AutoTokenizer loads it; None where no file of one is there: transformers then makes an empty one,
    without a word."""
    if source.folder is None and source.repo is None and not decoders.is_gguf(source):
        return None
    try:
        made = decoders.load_tokenizer(source)
    except UserError:
        return None
    if decoders.is_gguf(source):
        return made
    files = {*made.vocab_files_names.values(), "tokenizer.json", "tokenizer_config.json"}
    return made if any(_lies_beside(source, file) for file in files) else None


def _lies_beside(source: Source, file: str) -> bool:
    """Whether the folder has it, or the repository, whose files were fetched just now."""
    if source.folder is not None:
        return (source.folder / file).is_file()
    assert source.repo is not None, "a folder or a repository"
    return hub.cached(source.repo, file, source.revision) is not None


def _generation(source: Source) -> Any:
    from transformers import GenerationConfig

    if source.folder is not None and not (source.folder / _GENERATION).is_file():
        return None
    if source.folder is None and source.repo is None:
        return None
    try:
        with decoders.explained(source.text):
            return GenerationConfig.from_pretrained(
                str(source.folder or source.repo),
                **({"revision": source.revision} if source.revision else {}),
            )
    except UserError:
        return None


def _processor(source: Source) -> Any:
    """Of a model of pictures and words, as AutoProcessor loads it; of any other None."""
    if "vision_config" not in source.config or not any(_lies_beside(source, name) for name in _PROCESSORS):
        return None
    from transformers import AutoProcessor

    try:
        with decoders.explained(source.text):
            return AutoProcessor.from_pretrained(
                str(source.folder or source.repo),
                trust_remote_code=False,
                **({"revision": source.revision} if source.revision else {}),
            )
    except UserError:
        return None


# above the snippet of a student with Mamba-2's norms in several groups
_SINCE = "# transformers 5.23 or newer: an older one, without `import transmamba`, norms all heads together\n"
_SNIPPET = """{since}from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("OWNER/NAME"{also})
model = AutoModelForCausalLM.from_pretrained("OWNER/NAME"{also}).eval()
print(tokenizer.decode(model.generate(**tokenizer("Once", return_tensors="pt"), max_new_tokens=20)[0]))
"""


def card(origin: Origin, own_code: bool = False, since: str = "") -> Card:
    """Of a language model of transformers; with `own_code` one whose class lies beside it. since: a line on
    versions, as `versions_of` says it"""
    return Card(
        library="transformers",
        pipeline_tag="text-generation",
        snippet=_SNIPPET.format(also=", trust_remote_code=True" if own_code else "", since=since),
        licence=origin.licence,
        base_model=origin.base_model,
    )


def versions_of(config: Any) -> str:
    """A line of comment on which transformers runs a language model's configuration; none where each does."""
    kinds = getattr(config, "layers_block_type", None) or getattr(config, "layer_types", None) or ()
    own_code = hasattr(config, "auto_map")  # its norms are its own
    mixes = any("mamba" in kind or "linear" in kind for kind in kinds)
    return _SINCE if mixes and not own_code and getattr(config, "mamba_n_groups", 1) > 1 else ""
