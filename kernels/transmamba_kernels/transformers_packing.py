"""Packed rows at the entries of transformers' Mamba models: handed on to the scans, or refused by name.

A row's sequences are named by ids (`seq_idx`) or by offsets (`cu_seqlens`, or flash attention's
`cu_seq_lens_q`). transformers' models take either in **kwargs, and some of them drop it on the way down, so
that the sequences would run into each other without a word.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from .packing import seq_idx_from_cu_seqlens

Function = Callable[..., Any]

OFFSETS = ("cu_seqlens", "cu_seq_lens_q")
NAMES = ("seq_idx", *OFFSETS)
# Models without attention, and those whose masks part no packed sequences.
WITHOUT_ATTENTION = ("mamba2",)
BLIND_ATTENTION = ("granitemoehybrid",)
# Where a model with a head leaves what its own forward would not hand on to the model inside.
HANDED = "_transmamba_packed"


def scans_packed_rows(module: ModuleType) -> bool:
    """Whether the models of the module hand `seq_idx` to their convolution and their scan: Mamba-2's do."""
    return hasattr(module, "mamba2_chunk_scan")


def entries(module: ModuleType) -> list[type]:
    """The module's models: its PreTrainedModel classes with a forward of their own."""
    from transformers import PreTrainedModel

    own = (value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__)
    return [
        value
        for value in own
        if isinstance(value, type) and issubclass(value, PreTrainedModel) and "forward" in vars(value)
    ]


def named(arguments: Mapping[str, Any]) -> str | None:
    """The argument that names packed sequences, if one does."""
    return next((name for name in NAMES if arguments.get(name) is not None), None)


def ids_of(arguments: Mapping[str, Any], batch: int, length: int) -> Tensor | None:
    """(B, L): `seq_idx`, or made of the offsets of one row; None where no packed sequences are named.

    Raises ValueError for offsets with a batch other than 1.
    """
    name = named(arguments)
    if name is None or name == "seq_idx":
        return arguments.get("seq_idx")
    if batch != 1:
        raise ValueError(f"{name}: offsets with a batch of {batch}, expected one packed row")
    return seq_idx_from_cu_seqlens(arguments[name], length)


def refuse(name: str | None) -> None:
    """Raises ValueError where packed sequences are named to a model that cannot keep them apart."""
    if name is not None:
        raise ValueError(f"{name}: a tensor, expected None: this model does not hand it to its scan")


def refuse_step(name: str | None) -> None:
    """Raises ValueError where packed sequences are named to a decode step, whose state is one sequence's."""
    if name is not None:
        raise ValueError(f"{name}: a tensor, expected None in a decode step, whose state is one sequence's")


def forward(original: Function, module: ModuleType) -> Function:
    """A model's forward that drops none of `NAMES`: Mamba-2's hand it to every mixer, others refuse it."""
    parameters = list(inspect.signature(original).parameters)[1:]
    kind = module.__name__.split(".")[-2]

    @functools.wraps(original)
    def replacement(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = {**(getattr(self, HANDED, None) or {}), **kwargs}
        name = named(kwargs)
        if name is None:
            return original(self, *args, **kwargs)
        if not scans_packed_rows(module):
            refuse(name)
        given = dict(zip(parameters, args, strict=False)) | kwargs
        if kind not in WITHOUT_ATTENTION:
            _check_attention(self, given, name, blind=kind in BLIND_ATTENTION)
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if tokens is None:  # which the model has a message for
            return original(self, *args, **kwargs)
        kwargs["seq_idx"] = ids_of(kwargs, *tokens.shape[:2])
        kwargs.pop("cu_seqlens", None)
        inside = self.base_model
        if inside is self:
            return original(self, *args, **kwargs)
        setattr(inside, HANDED, {"seq_idx": kwargs["seq_idx"]})
        try:
            return original(self, *args, **kwargs)
        finally:
            delattr(inside, HANDED)

    return replacement


def _check_attention(model: Any, given: Mapping[str, Any], name: str, blind: bool) -> None:
    """Raises ValueError unless the attention layers keep packed sequences apart, by flash attention's offsets
    or by positions that begin anew, which transformers reads only without a mask and without a cache.
    """
    flash = "flash" in (getattr(model.config, "_attn_implementation", None) or "")
    if flash and given.get("cu_seq_lens_q") is not None:
        return
    if blind:
        raise ValueError(f"{name}: this model's attention parts sequences by flash attention's offsets alone")
    if given.get("position_ids") is None:
        raise ValueError(
            f"position_ids: None, expected positions that begin anew with each sequence of {name}"
        )
    if given.get("attention_mask") is not None:
        raise ValueError(
            f"attention_mask: a tensor, expected None: with it attention mixes what {name} parts"
        )
    cached = given.get("use_cache")
    if cached is None:
        checkpointed = model.is_gradient_checkpointing and model.training
        cached = getattr(model.config, "use_cache", False) and not checkpointed
    if cached or given.get("past_key_values") is not None:
        raise ValueError(f"use_cache: on, expected False: with a cache attention mixes what {name} parts")
