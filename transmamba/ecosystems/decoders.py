"""Language models of transformers: from safetensors or GGUF, in their own precision; or empty, from a
configuration alone."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from ..errors import UserError
from . import hub
from .damaged import damage_of
from .sources import GGUF, Source

# tensors that older versions saved and newer ones compute
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")
_NAMED = 3
_LOADED = "loaded"
# model_type of several parts -> where its config.json says what each of them is
_PARTS = dict.fromkeys(("clip", "siglip", "llava"), ("text_config", "vision_config"))


def is_gguf(source: Source) -> bool:
    return source.file is not None and source.file.suffix.lower() == GGUF


def is_decoder(source: Source) -> bool:
    """Whether transformers has a language model of its kind."""
    if is_gguf(source):
        return True
    kind = source.config.get("model_type")
    if not isinstance(kind, str) or "architecture" in source.config:
        return False
    return is_language(kind) and "vision_config" not in source.config  # vision-language models, too, have one


def is_language(model_type: str) -> bool:
    """Whether transformers has a causal language model of this type, and no text encoder."""
    from transformers.models.auto import modeling_auto as kinds

    known = model_type in kinds.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return known and model_type not in kinds.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def read_config(source: Source, reader: Any = None) -> Any:
    """The configuration, as transformers reads it, or a class of ours. Raises UserError in one line."""
    from transformers import AutoConfig

    name, given = _arguments(source)
    refuse_unsaid_parts(source.text, source.config)
    refuse_own_code(source.text, source.config, reader)
    with explained(source.text):
        config = (reader or AutoConfig).from_pretrained(name, **given)
    if not is_gguf(source) and getattr(config, "quantization_config", None):
        raise UserError(f"{source.text!r} is quantised; a teacher needs weights of plain numbers")
    return config


def refuse_unsaid_parts(name: str, config: Mapping[str, Any]) -> None:
    """Raises UserError where config.json, as it is written, says nothing of a model's tower or decoder:
    transformers would make one by its defaults, for LLaVA a Llama of 7 billion numbers."""
    kind = config.get("model_type")
    parts = _PARTS.get(kind, ()) if isinstance(kind, str) else ()
    # configurations of before 2023 have `text_config_dict` as well
    unsaid = [part for part in parts if not (config.get(part) or config.get(f"{part}_dict"))]
    if unsaid:
        shown = " and ".join(f"{part} is {json.dumps(config.get(part))}" for part in unsaid)
        raise UserError(
            f"Hugging Face model {name!r} (model_type={kind}): {shown} in its config.json, which would mean "
            "the sizes of another model; write its model_type and sizes there"
        )


def refuse_own_code(name: str, config: Mapping[str, Any], reader: Any = None) -> None:
    """Raises UserError for a model of a type that transformers knows by code beside it alone: it is not run,
    and transformers would stop to ask.

    reader: a class of ours that knows the type
    """
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if reader is None and "auto_map" in config and kind not in CONFIG_MAPPING:
        said = config.get("transmamba")
        ours = (
            f", a student {said['student']} of ours" if isinstance(said, dict) and "student" in said else ""
        )
        raise UserError(
            f"Hugging Face model {name!r} (model_type={kind}) has code of its own beside it{ours}, which is "
            "not run here; write a model of a type that transformers knows"
        )


def empty_decoder(source: Source, loader: Any = None) -> nn.Module:
    """The model without weights: its parameters on the meta device, what it computes from its configuration
    (rotary frequencies) as it is."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = read_config(source)
    with explained(source.text), init_empty_weights(include_buffers=False):
        made: Any = (loader or AutoModelForCausalLM).from_config(config)
    made.tie_weights()  # making its parameters empty has undone that
    return made.eval()


def load_decoder(source: Source, loader: Any = None) -> nn.Module:
    """The model with its weights, safetensors or GGUF only, in the precision they have.

    loader: the Auto class, of causal language models where left out. Raises UserError in one line: what is
    missing, and what the configuration has no place for.
    """
    from transformers import AutoModelForCausalLM

    name, given = _arguments(source)
    if not is_gguf(source):
        given |= {"use_safetensors": True}
    with explained(source.text), _quiet_gguf():
        model, found = (loader or AutoModelForCausalLM).from_pretrained(
            name, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, **given
        )
    refuse_other_shapes(source.text, found)
    unlike = {"missing_keys": "lacks", "unexpected_keys": "holds what its config has no place for:"}
    for key, said in unlike.items():
        odd = unplaced(found[key])
        if odd:
            raise UserError(f"Hugging Face model {source.text!r} {said} {odd}")
    return model.eval()


def refuse_other_shapes(name: str, found: Mapping[str, Any]) -> None:
    """Raises UserError for tensors of other shapes than the configuration says, by what was found out on
    loading with `ignore_mismatched_sizes`: without that transformers tells of them in a table alone."""
    if found["mismatched_keys"]:
        raise UserError(f"Hugging Face model {name!r}: {other_shapes(found['mismatched_keys'])}")


def other_shapes(found: Iterable[tuple[str, Any, Any]]) -> str:
    """The first of these (name, shape there, shape by the configuration), and how many more there are."""
    wrong = sorted(found)
    said = [f"{key} is {tuple(there)}, its config says {tuple(mine)}" for key, there, mine in wrong[:_NAMED]]
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return f"{'; '.join(said)}{more}"


def unplaced(names: Iterable[str]) -> str:
    """The first of these tensors' names, and how many more there are; nothing for none, and for what older
    versions saved and newer ones compute."""
    odd = sorted(name for name in names if not _COMPUTED.search(name))
    more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
    return f"{', '.join(odd[:_NAMED])}{more}"


def load_tokenizer(source: Source) -> Any:
    """Its tokenizer, as AutoTokenizer loads it. Raises UserError in one line."""
    from transformers import AutoTokenizer

    name, given = _arguments(source)
    with explained(source.text):
        # of a model with code beside it, too, whose configuration is of no matter here: without asking
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **given)


def _arguments(source: Source) -> tuple[str, dict[str, Any]]:
    """What from_pretrained takes. Raises UserError where GGUF cannot be read."""
    if not is_gguf(source):
        return str(source.folder or source.repo), {"revision": source.revision}
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{source.text!r}: GGUF files need the package gguf; pip install 'transmamba[gguf]'")
    assert source.file is not None, "it is one"
    if source.file.suffix != GGUF:
        raise UserError(
            f"{source.text!r}: transformers knows a GGUF file by the ending {GGUF}; rename it to "
            f"{source.file.stem}{GGUF}"
        )
    return str(source.file.parent), {"gguf_file": source.file.name}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what transformers says of a configuration's numbers, the table of keys that it prints where a
    checkpoint and a class differ (what is missing is an error of ours, in one line), and its progress bars
    where nobody looks at a terminal."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _quiet_gguf() -> Iterator[None]:
    """Within it the bar over a GGUF's tensors, tqdm's own, is one that transformers switches off with its
    others."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    plain = getattr(reader, "tqdm", None)
    if plain is None:  # a version whose bars are all transformers' own
        yield
        return
    reader.tqdm = logging.tqdm
    try:
        yield
    finally:
        reader.tqdm = plain


@contextlib.contextmanager
def explained(name: str, tried: str = _LOADED) -> Iterator[None]:
    """Within it an error of transformers is a UserError in one line, that of a file of weights which is not
    whole where that is why, a Hub that is not there is not waited for, and transformers says nothing itself.

    tried: what could not be done with the model of that name
    """
    try:
        with hub.without_waiting(), _quietly():
            yield
    except UserError:
        raise
    except Exception as error:
        if tried == _LOADED and (whole := damage_of(name)) is not None:
            raise UserError(whole) from error
        said = hub.explain(error)
        raise UserError(f"Hugging Face model {name!r} could not be {tried}: {said}") from error
