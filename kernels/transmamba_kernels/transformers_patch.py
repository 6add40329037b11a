"""Gives the operators to the Mamba models of transformers, and takes them away again.

transformers (5.16 and newer) looks its scans and convolutions up among the globals of each model's module
when it calls them; these globals are replaced. Its one-call training functions (`mamba_inner_fn`,
`mamba2_split_conv1d_scan_combined`) are switched off: they leave out the masks behind the convolution, which
the step-by-step code applies, so that left-padded batches would train on other numbers. The models' own
forwards are replaced by ones that hand packed rows down, or refuse them (transformers_packing.py), those of
their norms, MLPs and mixers by ones of fewer kernels where no gradients are wanted (transformers_tokens.py).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from types import ModuleType, TracebackType
from typing import Any

from torch import Tensor

from . import compat
from . import transformers_packing as packing
from . import transformers_tokens as tokens
from .torch_ops import differentiable

__all__ = ["MODELS", "Patch", "patch_transformers"]

MODELS = (
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "mamba",
    "mamba2",
    "nemotron_h",
    "zamba",
    "zamba2",
)
Function = Callable[..., Any]
# A module or one of its models, the name of what it had there, and that.
Replaced = tuple[ModuleType | type, str, Function]
Replacement = Callable[[Function, ModuleType], Function]


class Patch:
    """What was replaced. `undo`, or leaving it as a context manager, puts it back."""

    def __init__(self, replaced: list[Replaced]) -> None:
        self._replaced = replaced

    @property
    def models(self) -> list[str]:
        """The models that run on the operators through this patch."""
        modules = (owner for owner, _, _ in self._replaced if isinstance(owner, ModuleType))
        return sorted({module.__name__.split(".")[-2] for module in modules})

    def undo(self) -> None:
        """Puts the functions back that this patch replaced; once."""
        for owner, name, original in self._replaced:
            setattr(owner, name, original)
        self._replaced = []

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def patch_transformers(models: Iterable[str] | None = None) -> Patch:
    """Replaces the scans and convolutions of transformers' Mamba models, existing and future instances alike.

    models: names out of `MODELS`; None for all that the installed transformers has. Training, prefill and
    decode run on this package's operators at once; `undo()` of the result, or its end as a context manager,
    takes them away. What they do not do (activations other than SiLU, gradients through a decode step) still
    runs on transformers' own functions. Packed rows (`seq_idx`, `cu_seqlens`) are kept apart where a model is
    Mamba-2, and a ValueError elsewhere. A model that is patched already is left as it is.

    Raises ValueError for an unknown model, ModuleNotFoundError without transformers, and RuntimeError where
    its version keeps none of these functions.
    """
    wanted = MODELS if models is None else tuple(models)
    for name in wanted:
        if name not in MODELS:
            raise ValueError(f"models: {name!r}, expected names out of {', '.join(MODELS)}")
    import transformers

    # All imports before the first change: where one fails, nothing has been replaced.
    paths = {model: f"transformers.models.{model}" for model in wanted}
    modules = [
        importlib.import_module(f"{path}.modeling_{model}")
        for model, path in paths.items()
        if importlib.util.find_spec(path) is not None
    ]
    replaced: list[Replaced] = []
    known = 0
    for module in modules:
        known += sum(hasattr(module, name) for name in _REPLACEMENTS)
        places: list[tuple[ModuleType | type, str, Replacement]] = [
            *((module, name, replace) for name, replace in _REPLACEMENTS.items()),
            *((model, "forward", packing.forward) for model in packing.entries(module)),
            *((owner, "forward", replace) for owner, replace in tokens.classes(module)),
        ]
        for owner, name, replace in places:
            original = getattr(owner, name, None)
            if original is None or hasattr(original, "replaces"):
                continue
            replacement: Any = replace(original, module)
            replacement.replaces = original
            replaced.append((owner, name, original))
            setattr(owner, name, replacement)
            if isinstance(owner, type):
                _checkpoint_again(owner)
    if wanted and not known:
        raise RuntimeError(
            f"transformers {transformers.__version__} has no function to replace in {', '.join(wanted)}; "
            "versions 5.17 to 5.23 are known to have them"
        )
    return Patch(replaced)


def _checkpoint_again(owner: type) -> None:
    """Newer versions of transformers checkpoint gradients in a layer's forward, where it is the class's."""
    from transformers.modeling_layers import GradientCheckpointingLayer as Base

    if issubclass(owner, Base) and "__init_subclass__" in vars(Base):
        vars(Base)["__init_subclass__"].__func__(owner)


def _convolution(original: Function, module: ModuleType) -> Function:
    takes = ("initial_states", "return_final_states", "final_states_out")

    def causal_conv1d_fn(
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if not packing.scans_packed_rows(module):
            packing.refuse(packing.named(kwargs))
        if activation not in _ACTIVATIONS:
            return original(hidden_states, weight, bias, activation=activation, **kwargs)
        batch, _, length = hidden_states.shape
        ids = packing.ids_of(kwargs, batch, length)
        taken = {name: kwargs[name] for name in takes if name in kwargs}
        return compat.causal_conv1d_fn(hidden_states, weight, bias, ids, activation=activation, **taken)

    return causal_conv1d_fn


def _convolution_update(original: Function, module: ModuleType) -> Function:
    def causal_conv1d_update(
        hidden_states: Tensor,
        conv_state: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        if activation not in _ACTIVATIONS or differentiable(hidden_states, conv_state, weight, bias):
            return original(hidden_states, conv_state, weight, bias, activation=activation)
        return compat.causal_conv1d_update(hidden_states, conv_state, weight, bias, activation)

    return causal_conv1d_update


def _selective_scan(original: Function, module: ModuleType) -> Function:
    def mamba_selective_scan(
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        packing.refuse(packing.named(kwargs))
        return compat.selective_scan_fn(
            hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
        )

    return mamba_selective_scan


def _chunk_scan(original: Function, module: ModuleType) -> Function:
    def mamba2_chunk_scan(
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        initial_states: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        return_final_states: bool = False,
        z: Tensor | None = None,
        return_varlen_states: bool = False,
        **kwargs: Any,
    ) -> Any:
        return compat.mamba_chunk_scan_combined(
            hidden_states,
            dt,
            A,
            B,
            C,
            chunk_size,
            D,
            z,
            dt_bias,
            initial_states,
            packing.ids_of(kwargs, *hidden_states.shape[:2]),
            kwargs.get("cu_seqlens"),
            dt_softplus=dt_softplus,
            dt_limit=dt_limit,
            return_final_states=return_final_states,
            return_varlen_states=return_varlen_states,
        )

    return mamba2_chunk_scan


def _state_update(original: Function, module: ModuleType) -> Function:
    def selective_state_update(
        state: Tensor,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        z: Tensor | None = None,
        state_batch_indices: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        packing.refuse_step(packing.named(kwargs))
        inputs = (state, hidden_states, dt, A, B, C)
        if differentiable(*inputs, D, dt_bias, z):
            return original(*inputs, D, dt_bias=dt_bias, dt_softplus=dt_softplus, z=z, **kwargs)
        return compat.selective_state_update(*inputs, D, z, dt_bias, dt_softplus, state_batch_indices)

    return selective_state_update


def _off(original: Function, module: ModuleType) -> Function:
    def step_by_step(*args: Any, **kwargs: Any) -> None:
        return None

    return step_by_step


_ACTIVATIONS = (None, "silu", "swish")
_REPLACEMENTS: dict[str, Replacement] = {
    "causal_conv1d_fn": _convolution,
    "causal_conv1d_update": _convolution_update,
    "mamba_inner_fn": _off,
    "mamba_selective_scan": _selective_scan,
    "mamba_selective_state_update": _state_update,
    "mamba2_split_conv1d_scan_combined": _off,
    "mamba2_chunk_scan": _chunk_scan,
    "mamba2_selective_state_update": _state_update,
}
