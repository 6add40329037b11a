"""Where a model's stream begins: soft tokens that come into it and leave it again, a class token and
positions that are changed while the model embeds.

Our own students ask for both (`students.adaptable`). Models of transformers are reached by two hooks around
the module that owns the embedding: one puts the tokens in, behind each row's padding, and makes mask and
positions longer; the other leaves them out of what it gives. In cached decoding they are in the cache.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ..core.output import Context
from ..errors import UserError
from ..layers.insertion import Insertion, Where
from .families.edit import InPlace
from .families.family import refuse_packed
from .families.opening import owner_of
from .layer import MambaPeftLayer
from .methods.prompt import Prompt

CACHES = ("past_key_values", "cache_params")


class Beginning:
    """What the active adapters of an embedding's layer change at the stream's start."""

    def __init__(self, layer: MambaPeftLayer) -> None:
        self.layer = layer

    def embedding(self) -> InPlace:
        """While the owner embeds: its class token and positions with their deltas."""
        layer = self.layer
        if layer.disable_adapters or layer.merged:
            return InPlace([])
        return InPlace([swap for swap in layer.swaps() if swap[0] is layer.owner_table()])

    def tokens(self) -> tuple[Where, Tensor] | None:
        """Where soft tokens (P, d) stand. Raises UserError for those of adapters that differ in it."""
        layer, found = self.layer, []
        if layer.disable_adapters:
            return None
        for name in layer.active_adapters:
            for method in layer.methods.get(name, ()):
                if isinstance(method, Prompt):
                    made = method.made(layer.transmamba_adapters[name].of(method))
                    found.append((method.place(layer.mixer), made))
        places = list(dict.fromkeys(where for where, _ in found))
        if len(places) > 1:
            raise UserError(f"two active adapters have prompts in different places, {places}; use one")
        return (places[0], torch.cat([made for _, made in found])) if found else None

    def insertion(self, x: Tensor, context: Context) -> tuple[Insertion, Tensor] | None:
        """Of a stream x (B, L, d), where the tokens come in, and they; None without any."""
        found = self.tokens()
        if found is None:
            return None
        where, tokens = found
        if self.layer.mixer.table:
            return Insertion.before(x.shape[1], len(tokens), context, x.device), tokens
        return Insertion.fixed(x.shape[1], len(tokens), where, x.device), tokens


class Hooks:
    """Around a model of transformers without its head."""

    def __init__(self, beginning: Beginning) -> None:
        self.beginning = beginning
        self.opened: Insertion | None = None

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.opened = None
        tokens = self.beginning.tokens()
        if tokens is None or not isinstance(owner_layer(module), MambaPeftLayer):
            return None
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        given = dict(zip(names, args, strict=False)) | kwargs
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise UserError("attention_mask: a prompt needs that of the tokens, (rows, tokens)")
        refuse_packed(given)
        count = len(tokens[1])
        if begun(next((given[name] for name in CACHES if given.get(name) is not None), None)):
            if mask is not None:
                given["attention_mask"] = Insertion.before(
                    mask.shape[1], count, Context(mask=mask), mask.device
                ).mask(mask)
            if positions is not None:
                given["position_ids"] = positions + count
            return (), given
        x = given.get("inputs_embeds")
        if x is None:
            x = module.get_input_embeddings()(given["input_ids"])
        opened = Insertion.before(x.shape[1], count, Context(mask=mask), x.device)
        given["input_ids"], given["inputs_embeds"] = None, opened.place(x, tokens[1])
        given["attention_mask"] = opened.mask(mask)
        if positions is not None:
            given["position_ids"] = opened.positions(positions, len(x))
        self.opened = opened
        return (), given

    def after(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        opened, self.opened = self.opened, None
        if opened is None:
            return None

        def own(hidden: Tensor) -> Tensor:
            return opened.drop(hidden).contiguous()  # users view it, and change it in place

        if isinstance(output, tuple):
            return (own(output[0]), *output[1:])
        output.last_hidden_state = own(output.last_hidden_state)
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(map(own, output.hidden_states))
        return output


def begun(cache: Any) -> bool:
    """Whether a cache of transformers', or of our students', has read something."""
    if cache is None:
        return False
    layers = getattr(cache, "layers", [])
    if any(any(getattr(layer, "has_previous_state", {}).values()) for layer in layers):
        return True
    attention = [layer for layer in layers if hasattr(layer, "keys")]
    return any(layer.get_seq_length() > 0 for layer in attention) or getattr(cache, "read", 0) > 0


def owner_layer(module: Any) -> Any:
    """The embedding of a model, which is wrapped for as long as adapters are on it."""
    return module.get_input_embeddings()


def end(layer: MambaPeftLayer) -> None:
    """The opposite, of a layer that is taken out of its model."""
    owner: Any = layer.owner
    if owner is None:
        return
    if hasattr(owner, "adapting"):
        owner.adapting = None
    for table in (owner._forward_pre_hooks, owner._forward_hooks):
        for key, hook in list(table.items()):
            hooks = getattr(hook, "__self__", None)
            if isinstance(hooks, Hooks) and hooks.beginning.layer is layer:
                del table[key]
    layer.end()


def begin(layer: MambaPeftLayer) -> None:
    """Make known to the module whose stream begins at `layer` what its methods change there, once."""
    methods = [method for methods in layer.methods.values() for method in methods]
    owner: Any = owner_of(layer.base_layer)
    if not any(method.begins for method in methods) or layer.owner is not None:
        return
    assert owner is not None, "methods refuse an embedding without"
    layer.begin(owner)
    if hasattr(owner, "adapting"):
        owner.adapting = Beginning(layer)
        return
    hooks = Hooks(Beginning(layer))
    owner.register_forward_pre_hook(hooks.before, with_kwargs=True)
    owner.register_forward_hook(hooks.after, with_kwargs=True)
