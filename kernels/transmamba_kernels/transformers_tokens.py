"""What a patched model of transformers runs as one kernel where it had many, where nobody wants gradients:
norms, the gate of an MLP, one token of a Mamba-2 mixer, the products of a Bamba's layer for a few; and the
layer of zeros that it need not run.

Replaced are forwards of the classes in each model's module, which every instance looks up when it is called.
They are transformers' own again with gradients, under torch.compile, which fuses by itself, and where Triton
does not run, unless TRANSMAMBA_KERNELS forces a path.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from . import transformers_packing as packing
from .backend import VARIABLE, choose
from .gated_product import gated_product, normed_gated_product
from .mamba2_step import mamba2_step
from .rms_norm import rms_norm
from .silu_mul import silu_mul
from .skinny_linear import skinny_linear
from .skinny_linear.reference import MOST_ROWS
from .transformers_nulls import count_tokens, layer_of_zeros

Function = Callable[..., Any]
Replacement = Callable[[Function, ModuleType], Function]

# Whose norms multiply by the weight before they round.
ROUND_LAST = {"NemotronHRMSNorm", "FalconH1RMSNormGated"}
# Mixers that are Mamba-2 and nothing else between their projections, and what gives their tokens to an MLP.
MIXERS = {
    "BambaMixer",
    "GraniteMoeHybridMambaLayer",
    "Mamba2Mixer",
    "NemotronHMamba2Mixer",
    "Zamba2MambaMixer",
}
MLPS = {"BambaMLP", "JambaMLP"}
STACKED_MLPS = {"GraniteMoeHybridMLP"}
LAYERS = {"BambaDecoderLayer", "GraniteMoeHybridDecoderLayer"}


def classes(module: ModuleType) -> Iterator[tuple[type, Replacement]]:
    """Classes of the module whose forward is replaced, with what makes the replacement."""
    for name, value in vars(module).items():
        own = isinstance(value, type) and value.__module__ == module.__name__ and "forward" in vars(value)
        replace = _replacement(name) if own else None
        if replace is not None:
            yield value, replace


def _replacement(name: str) -> Replacement | None:
    if name in ROUND_LAST:
        return None
    if name.endswith("RMSNormGated"):
        return _gated_norm
    if name.endswith("RMSNorm"):
        return _norm
    by_name = [(MIXERS, _mixer), (MLPS, _mlp), (STACKED_MLPS, _stacked_mlp), (LAYERS, _layer)]
    return next((replace for names, replace in by_name if name in names), None)


def _fuses(op: str, *tensors: Tensor) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if os.environ.get(VARIABLE):
        return True
    return tensors[0].is_cuda and choose(op, *tensors) == "triton"


def _norm(original: Function, module: ModuleType) -> Function:
    @functools.wraps(original)
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        weight = getattr(self, "weight", None)
        if weight is None or not (_is_plain(weight) and _fuses("rms_norm", hidden_states, weight)):
            out: Tensor = original(self, hidden_states)
            return out
        return rms_norm(hidden_states, weight, self.variance_epsilon)

    return forward


def _gated_norm(original: Function, module: ModuleType) -> Function:
    @functools.wraps(original)
    def forward(self: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        if not (_is_plain(self.weight) and _fuses("rms_norm", hidden_states, self.weight)):
            out: Tensor = original(self, hidden_states, gate)
            return out
        return rms_norm(hidden_states, self.weight, self.variance_epsilon, gate, group_of(self))

    return forward


def group_of(norm: Any) -> int | None:
    """Channels that a gated norm takes together. transformers before 5.23 knows no groups and takes all:
    None; who mends its classes gives a norm its `group_size`.
    """
    group: int | None = getattr(norm, "group_size", None)
    return group


def _mlp(original: Function, module: ModuleType) -> Function:
    @functools.wraps(original)
    def forward(self: Any, x: Tensor) -> Any:
        if not (_is_silu(self.act_fn) and _fuses("silu_mul", x)):
            return original(self, x)
        if _is_few(x) and _is_matrix(self.gate_proj, x) and _is_matrix(self.up_proj, x):
            return self.down_proj(gated_product(x, self.gate_proj.weight, self.up_proj.weight))
        return self.down_proj(silu_mul(self.gate_proj(x), self.up_proj(x)))

    return forward


def _stacked_mlp(original: Function, module: ModuleType) -> Function:
    @functools.wraps(original)
    def forward(self: Any, hidden_states: Tensor) -> Any:
        if not (_is_silu(self.activation) and _fuses("silu_mul", hidden_states)):
            return original(self, hidden_states)
        return self.output_linear(silu_mul(*self.input_linear(hidden_states).chunk(2, dim=-1)))

    return forward


def _is_few(x: Tensor) -> bool:
    return x.shape[:-1].numel() <= MOST_ROWS


def _is_matrix(linear: Any, x: Tensor) -> bool:
    """Whether a projection is a product by its weight and nothing else."""
    if type(linear) is not nn.Linear or linear.bias is not None or is_hooked(linear):
        return False
    if not _is_plain(linear.weight):
        return False
    return linear.weight.dtype == x.dtype and not torch.is_autocast_enabled(x.device.type)


def _is_plain(weight: Tensor) -> bool:
    """Whether its numbers are where it says: not sharded, not quantised."""
    return type(weight) in (nn.Parameter, Tensor)


def _is_silu(activation: Any) -> bool:
    if is_hooked(activation):
        return False
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


def _mixer(original: Function, module: ModuleType) -> Function:
    @functools.wraps(original)
    def forward(
        self: Any,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        states = None
        if attention_mask is None and packing.named(kwargs) is None:
            states = _states_of_a_step(self, hidden_states, cache_params)
        if states is None or not _fuses("mamba2_step", hidden_states, *states):
            return original(self, hidden_states, cache_params, attention_mask, **kwargs)
        y = _before_out_proj(self, self.in_proj(hidden_states), states)
        return self.out_proj(y.to(hidden_states.dtype))

    return forward


def _before_out_proj(
    mixer: Any, projected: Tensor, states: tuple[Tensor, Tensor], in_weight: Tensor | None = None
) -> Tensor:
    """A step's y (B, 1, H P), of what in_proj made, or will make by its weight."""
    y = mamba2_step(
        projected[:, 0],
        *states,
        mixer.conv1d.weight[:, 0],
        mixer.conv1d.bias,
        mixer.dt_bias,
        mixer.A_log,
        mixer.D,
        mixer.norm.weight,
        mixer.norm.variance_epsilon,
        group_of(mixer.norm),
        in_weight,
    )
    return y[:, None]


def _states_of_a_step(mixer: Any, hidden_states: Tensor, cache: Any) -> tuple[Tensor, Tensor] | None:
    """The cache's states of the convolution (B, C, S) and of the scan (B, H, P, N), where the mixer decodes
    one token, and nobody waits for a call of the modules that are read past their calls.
    """
    if cache is None or hidden_states.shape[1] != 1 or mixer.activation not in ("silu", "swish"):
        return None
    norm, conv, index = mixer.norm, mixer.conv1d, mixer.layer_idx
    if not (_is_plain(norm.weight) and _is_plain(conv.weight)):
        return None
    mended_later = hasattr(type(norm).forward, "by_group") and group_of(norm) is None
    if mended_later or not type(norm).__name__.endswith("RMSNormGated") or is_hooked(norm) or is_hooked(conv):
        return None
    layer = cache.layers[index]
    if getattr(layer, "record_past", False) or not cache.has_previous_state(index):
        return None
    states = layer.conv_states[0], layer.recurrent_states[0]
    return None if states[0] is None or states[1] is None else states


def is_hooked(module: Any) -> bool:
    """Whether somebody waits for the module's own call: by hooks, accelerate's, or a forward of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


def _layer(original: Function, module: ModuleType) -> Function:
    alone = module.__name__.endswith("granitemoehybrid")  # others give attention's weights beside the stream

    @functools.wraps(original)
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or not _fuses("rms_norm", hidden_states):
            return original(self, hidden_states, *args, **kwargs)
        if not layer_of_zeros(self, hidden_states):
            after = None if alone else _token_of_a_layer(self, hidden_states, kwargs, module)
            return original(self, hidden_states, **kwargs) if after is None else (after, None)
        if kwargs.get("past_key_values") is not None:
            count_tokens(kwargs["past_key_values"], self.self_attn, hidden_states)
        return hidden_states if alone else (hidden_states, None)

    return forward


def _token_of_a_layer(layer: Any, stream: Tensor, given: dict[str, Any], module: ModuleType) -> Tensor | None:
    """A Bamba's layer of Mamba-2 for one token of few rows, where all that it does are its modules' own
    products: each is one kernel with what is added to it.
    """
    mixer: Any = getattr(layer, "mamba", None)
    mlp = layer.feed_forward
    # what wraps them, as an adapter does, hands their attributes on
    if type(mixer) is not vars(module)["BambaMixer"] or type(mlp) is not vars(module)["BambaMLP"]:
        return None
    if given.get("attention_mask") is not None or packing.named(given) is not None:
        return None
    products = (mixer.in_proj, mixer.out_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    if not _is_few(stream) or not all(_is_matrix(product, stream) for product in products):
        return None
    if is_hooked(mixer) or is_hooked(mlp) or not _is_silu(mlp.act_fn):
        return None
    states = _states_of_a_step(mixer, stream, given.get("past_key_values"))
    if states is None:
        return None
    y = _before_out_proj(mixer, layer.input_layernorm(stream), states, mixer.in_proj.weight).to(stream.dtype)
    norm, halves = layer.pre_ff_layernorm, (mlp.gate_proj.weight, mlp.up_proj.weight)
    plain = type(norm) is vars(module)["BambaRMSNorm"] and not is_hooked(norm) and _is_plain(norm.weight)
    if plain and norm.weight.dtype == stream.dtype:
        between = stream, norm.weight, norm.variance_epsilon
        stream, opened = normed_gated_product(y, mixer.out_proj.weight, *between, *halves)
    else:
        stream = skinny_linear(y, mixer.out_proj.weight, stream)
        opened = gated_product(norm(stream), *halves)
    return skinny_linear(opened, mlp.down_proj.weight, stream)
