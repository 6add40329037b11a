"""What begins before a text, compiled into the cache that the base model starts from: generation with it
costs what the base's does. Prompt, affix and initial state are no more than states before the first token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .families.inside import Inside
from .layer import MambaPeftLayer
from .merge import layers_of
from .methods.affix import Affix
from .methods.initial_state import InitialState
from .methods.prompt import Prompt
from .stream import CACHES, Beginning
from .targets import candidates

BEGINNINGS = (Prompt, Affix, InitialState)


class Seed:
    """The states in front of a text, and how a base model reads on from them.

    states: the cache of one row, of the class that the model makes
    tokens: how many positions it fills in layers with attention
    """

    def __init__(self, states: Any, tokens: int) -> None:
        self.states, self.tokens = states, tokens

    def cache(self, rows: int = 1) -> Any:
        """A cache of so many rows to go on from; each call gives one of its own."""
        made = copy.deepcopy(self.states)
        made.reorder_cache(torch.zeros(rows, dtype=torch.long))
        return made

    def inputs(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, beams: int = 1
    ) -> dict[str, Any]:
        """What a call of the base model, or of its `generate` with so many beams, takes: input_ids (B, L),
        attention_mask (B, tokens + L), the cache. Raises UserError for padding, which would stand between the
        seed and the text."""
        if attention_mask is not None and not bool(attention_mask.all()):
            raise UserError("a seed stands right before the text; give rows without padding, of one length")
        rows, length = input_ids.shape
        made: dict[str, Any] = {"input_ids": input_ids, self.key: self.cache(rows * beams)}
        if self.tokens:
            made["attention_mask"] = input_ids.new_ones(rows, self.tokens + length)
        return made

    @property
    def key(self) -> str:
        """How models without attention, and those with some, call a cache."""
        return CACHES[0] if self.attends else CACHES[1]

    @property
    def attends(self) -> bool:
        layers = getattr(self.states, "layers", [])
        return not layers or any(hasattr(layer, "keys") for layer in layers)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Within it `model`, the base without the adapter, reads the states in front of several tokens at
        once, which some of transformers' mixers do of one token alone. Raises UserError for a model that
        has adapters."""
        if layers_of(model):
            raise UserError("a seed is for the base model; take the adapter out of it with unload() first")
        mixers = [pair for pair in candidates(model).values() if pair[1].on == "mixer"]
        try:
            for module, family in mixers:
                module.forward = partial(family.run, module, Inside())
            yield
        finally:
            for module, _ in mixers:
                module.__dict__.pop("forward", None)


@torch.no_grad()
def compile_cache(model: Any, adapter_name: str = "default") -> Seed:
    """The seed of an adapter of `model`, a PeftModel over a causal language model of transformers.

    Raises UserError for methods, and for modules trained whole, that change more than what begins before a
    text.
    """
    config = model.peft_config.get(adapter_name)
    if config is None:
        raise UserError(f"there is no adapter {adapter_name!r}; there are: {', '.join(model.peft_config)}")
    other = [part.name for part in config.parts if not isinstance(part, BEGINNINGS)]
    if other:
        raise UserError(
            f"{', '.join(other)} cannot be compiled into a cache, which holds what begins before a text: "
            f"{', '.join(kind.name for kind in BEGINNINGS)}"
        )
    if config.modules_to_save:
        raise UserError(
            f"modules_to_save: {', '.join(config.modules_to_save)} cannot be compiled into a cache, after "
            "which the base's own run; generate with the adapter, or train one without modules_to_save"
        )
    base = model.get_base_model()
    if not hasattr(base, "prepare_inputs_for_generation"):
        raise UserError(f"{type(base).__name__} generates nothing; a seed is for a language model")
    active, mode = model.active_adapters, model.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        model.base_model.set_adapter(adapter_name)
        return _compiled(base)
    finally:
        model.base_model.set_adapter(active)
        model.train(mode)
        model.requires_grad_(False)  # which setting an adapter changes
        for parameter in trained:
            parameter.requires_grad_(True)


def _compiled(base: Any) -> Seed:
    layers = list(layers_of(base).values())
    mixers = [layer for layer in layers if layer.family.on == "mixer"]
    prompts = [found for layer in layers if (found := Beginning(layer).tokens()) is not None]
    if prompts:
        (_, tokens), inner = (
            prompts[0],
            base.get_decoder() if hasattr(base, "get_decoder") else base.base_model,
        )
        with without_prompt(base):
            made = inner(inputs_embeds=tokens.unsqueeze(0), use_cache=True)
        states = next(getattr(made, name) for name in CACHES if getattr(made, name, None) is not None)
        return Seed(states, len(tokens))
    from transformers import DynamicCache

    states = DynamicCache(config=base.config.get_text_config())
    for layer in mixers:
        _begin(layer, states)
    return Seed(states, 0)


def _begin(layer: MambaPeftLayer, states: Any) -> None:
    """The states behind a layer's affix, or its initial state alone, before any token."""
    if not hasattr(layer, "layer_idx"):
        kind = type(layer.base_layer).__name__
        raise UserError(f"{kind} has a cache of its own; add a prompt, through which it can be made")
    weight, inside = next(layer.base_layer.parameters()), layer.inside()
    if inside.affixes:
        layer(weight.new_zeros(1, 0, layer.mixer.width), cache_params=states)
        return
    channels, taps, at = layer.mixer.shapes["conv1d.weight"][0], layer.mixer.taps, layer.layer_idx
    states.update_conv_state(weight.new_zeros(1, channels, taps), at, conv_kernel_size=taps)
    mixer = layer.mixer
    shape = (mixer.inner,) if mixer.heads is None else (mixer.heads, mixer.inner // mixer.heads)
    first = inside.start_of(1, shape, mixer.state)
    states.update_recurrent_state(weight.new_zeros(1, *shape, mixer.state) if first is None else first, at)


@contextmanager
def without_prompt(base: nn.Module) -> Iterator[None]:
    """Prompts are left out for a while."""
    embeddings = [layer for layer in layers_of(base).values() if layer.mixer.table]
    for layer in embeddings:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in embeddings:
            layer.enable_adapters(True)


@torch.no_grad()
def bake(model: Any, adapter_name: str = "default") -> None:
    """Replace a prompt's `mlp` by the tokens that it makes, the same numbers; the adapter is then saved, and
    trained on, without it. Nothing happens where there is none."""
    config = model.peft_config[adapter_name]
    for layer in layers_of(model.get_base_model()).values():
        for method in layer.methods.get(adapter_name, ()):
            if isinstance(method, Prompt) and method.mlp:
                layer.replace(
                    adapter_name,
                    method,
                    method.baked,
                    {method.name: method.made(layer.transmamba_adapters[adapter_name].of(method))},
                )
                config.replace(method, method.baked)
