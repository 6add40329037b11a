"""What `bench decode` times: a language model and its hybrid as transformers' own classes, or the hybrid as
ours, of configurations alone.

Their weights are random: what they are does not change the time, but for layers of zeros, which need not run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ecosystems import decoders
from ..ecosystems.sources import read_source
from ..ecosystems.vision_language import LLAVA
from ..errors import UserError, WrongValues
from ..students.hybrid_lm.architectures import ARCHITECTURES, OURS, make_config, null_layers
from ..students.hybrid_lm.names import HybridLM
from ..students.hybrid_lm.own_class import make_own_config, own_config, own_model
from ..students.hybrid_lm.shape import architecture_for, shape_of
from ..teachers.load import adapt_teacher
from ..training.cuda_graph import WARMUP, Recording, first_error
from .decode_caches import go_to, is_own, pretend, static_cache

# tokens that are read before a cache is filled with numbers: more than a convolution's taps
_PROMPT = 16


def read_model_config(text: str) -> Any:
    """transformers' configuration of a language model in a folder, a repository or a file config.json; of a
    LLaVA its decoder, which is what writes. Raises UserError for anything else."""
    path = Path(text).expanduser()
    if path.suffix == ".json" and path.is_file():
        config = _of_file(text, path)
    else:
        source = read_source(text)
        if source.config.get("model_type") == LLAVA:
            return decoders.read_config(source).text_config
        if source.config.get("model_type") == own_config().model_type:
            return own_config().from_dict(source.config)
        if not decoders.is_decoder(source):
            raise UserError(f"{text!r} is no language model of transformers; write a folder or a config.json")
        config = decoders.read_config(source)
    return config


def _of_file(text: str, path: Path) -> Any:
    from transformers import AutoConfig

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{text!r} is no JSON ({error}); write the config.json of a language model") from None
    kind = values.pop("model_type", None) if isinstance(values, dict) else None
    if kind == LLAVA:
        decoders.refuse_unsaid_parts(text, {"model_type": kind, **values})
        with decoders.explained(text):
            return AutoConfig.for_model(kind, **values).text_config
    if kind == own_config().model_type:
        return own_config().from_dict(values)
    if not isinstance(kind, str) or not decoders.is_language(kind):
        raise UserError(f"{text!r}: model_type is {kind!r}, which is no language model of transformers")
    with decoders.explained(text):
        return AutoConfig.for_model(kind, **values)


def hybrid_config(teacher: Any, keep: Sequence[int], window: int = 0, sinks: int = 0) -> Any:
    """Of the hybrid with a teacher's shape and its attention in these layers; in the others Mamba-2, or with
    `window` that many tokens, `sinks` and a scan. Raises UserError for a teacher that no hybrid_lm holds, for
    layers that are not there, and for windows that there cannot be."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        empty: Any = AutoModelForCausalLM.from_config(teacher)
    empty.tie_weights()  # making its parameters empty has undone that
    view = adapt_teacher(empty).view
    kind = "own" if window else architecture_for(view, "auto")
    try:
        asked = HybridLM(attention_layers=tuple(keep), window=window, sinks=sinks)
    except WrongValues as error:
        raise UserError(str(error)) from error
    shape = shape_of(view, asked, not ARCHITECTURES[kind].mlp_bias, normed=kind == "own")
    if window:
        return make_own_config(shape, "hybrid_lm", "window_mamba", window=window, sinks=sinks)
    if kind == "own":
        return make_own_config(shape, "hybrid_lm", "linear_attention")
    return make_config(kind, shape)


def attention_layers(config: Any) -> int:
    """How many there are, but for the empty one of a hybrid without any."""
    if is_own(config):
        return int(config.layer_kinds.count("full_attention"))
    kinds = getattr(config, "layers_block_type", None) or getattr(config, "layer_types", None)
    if not kinds:
        return int(config.num_hidden_layers)
    return sum("attention" in kind and "linear" not in kind for kind in kinds) - _null_count(config)


def _null_count(config: Any) -> int:
    return null_layers(config) if getattr(config, OURS, None) else 0  # a teacher says nothing of it


def make_model(config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The model with random weights, in evaluation mode; what its configuration calls null is zero, as in a
    student that was saved."""
    from transformers import AutoModelForCausalLM

    with decoders.explained(config.model_type, tried="made"), torch.device(device):
        model: Any = (
            own_model()(config) if is_own(config) else AutoModelForCausalLM.from_config(config, dtype=dtype)
        )
    for layer in _nulls(model):
        for parameter in layer.parameters():
            parameter.data.zero_()
    return model.to(device, dtype).eval().requires_grad_(False)


def _nulls(model: Any) -> list[Any]:
    """The layers that a hybrid without attention has beyond its own."""
    count = _null_count(model.config)
    return list(model.model.layers[-count:]) if count else []


class Prefill:
    """Reads `length` tokens in each of `batch` rows into an empty cache, and predicts the next."""

    def __init__(self, model: Any, batch: int, length: int) -> None:
        self.model, self.cache = model, static_cache(model, length)
        self.ids = torch.randint(model.config.vocab_size, (batch, length), device=model.device)

    def rewind(self) -> None:
        self.cache.reset()

    def __call__(self) -> Tensor:
        logits: Tensor = self.model(
            input_ids=self.ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        ).logits
        return logits


class Decoding:
    """Writes `tokens` tokens greedily in each of `batch` rows, the last of them as the `length`th.

    graphs:   a token is one CUDA graph, recorded once and replayed
    compiled: the model went through torch.compile

    Raises UserError where it cannot be recorded.
    """

    def __init__(
        self,
        model: Any,
        batch: int,
        length: int,
        tokens: int,
        *,
        graphs: bool = False,
        compiled: bool = False,
    ) -> None:
        self.model, self.tokens, self.start = model, tokens, length - tokens
        self.cache = static_cache(model, length)
        ids = torch.randint(model.config.vocab_size, (batch, min(_PROMPT, self.start)), device=model.device)
        self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        pretend(self.cache, self.start)
        self.ids, self.positions = ids[:, :1].clone(), torch.zeros_like(ids[:, :1])
        # ours follows places by itself, and would wait for the device to hear that these are the same
        self._said = {} if is_own(model.config) else {"position_ids": self.positions}
        if compiled:
            # what other points compiled counts towards a limit, behind which nothing is compiled any more
            torch._dynamo.reset()
        self._forward = torch.compile(model, dynamic=False) if compiled else model
        self._recording = self._recorded() if graphs else None

    def rewind(self) -> None:
        """Back to the first of them. States of Mamba-2 go on, which have no length."""
        self.positions.fill_(self.start)
        go_to(self.cache, self.start)

    def __call__(self) -> Tensor:
        for _ in range(self.tokens):
            self.step()
        return self.ids

    def step(self) -> None:
        """One token."""
        if self._recording is None:
            self._token()
        else:
            self._recording()

    def _token(self) -> None:
        """Everything in place, so that a recording can be replayed."""
        logits = self._forward(
            input_ids=self.ids, past_key_values=self.cache, use_cache=True, **self._said
        ).logits
        self.ids.copy_(logits[:, -1:].argmax(dim=-1))
        self.positions.add_(1)

    def _recorded(self) -> Recording[None]:
        for _ in range(WARMUP):
            self.rewind()
            self._token()
        self.rewind()
        torch.cuda.synchronize(self.model.device)
        try:
            return Recording(lambda constants: self._token(), (), None)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise UserError(
                f"graphs: a token of {self.model.config.model_type} could not be recorded "
                f"({first_error(error)}); leave --graphs out"
            ) from error


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it hides, says that the memory is too small."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
