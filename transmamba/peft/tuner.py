"""The tuner that PEFT makes of a `MambaPeftConfig`."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import UserError
from .base import check_base, check_names, check_saved, check_tensors
from .coverage import Coverage, adapter_parameters, coverage, refuse_dead
from .families.family import family_of
from .groups import parameter_groups
from .layer import MambaPeftLayer
from .merge import check_merge, layers_of, note_state_size, note_untied
from .peft_type import PREFIX
from .saved import refuse_empty, saved_of
from .stream import begin, end
from .targets import candidates, targets_of
from .withdraw import loading, withdraw


class MambaPeftModel(BaseTuner):
    """Wraps each mixer that the configuration names, and the embedding where a method asks for it.

    When training starts, at the model's first forward pass with gradients, whoever calls it, the coverage is
    printed, and an adapter of which a part gets no gradient is refused.
    """

    prefix = PREFIX
    tuner_layer_cls = MambaPeftLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012
    model: Any
    _started: frozenset[tuple[tuple[str, int], ...]] = frozenset()
    _watch: RemovableHandle | None = None

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        # on the model: PEFT calls it past the tuner where no task is said, and transformers drops the tuner
        if self._watch is None:
            self._watch = model.register_forward_hook(self._called)

    def _called(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._start(output)

    def _start(self, output: Any) -> None:
        """Once for each set of active adapters that are trained."""
        active = tuple((name, id(self.peft_config[name])) for name in self.active_adapters)
        if active in self._started:
            return
        if not any(p.requires_grad for _, p in adapter_parameters(self.model)):
            return
        refuse_dead(self.model, output)
        self._started |= {active}
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"{self.coverage()}\n")

    def coverage(self) -> Coverage:
        """What the active adapters reach."""
        return coverage(self.model)

    def parameter_groups(self, rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """What is trained, for an optimizer: rate and weight decay times what each method says."""
        return parameter_groups(self.model, rate, weight_decay)

    # --- going in ---

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # what is found out of this model is written into it: the caller's may be another model's, too
        config = self.peft_config[adapter_name] = copy.copy(self.peft_config[adapter_name])
        config._awaits = loading()
        there = any(adapter_name in layer.methods for layer in layers_of(model).values())
        try:
            with nullcontext() if there else withdraw(model, adapter_name):
                super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            if not there:
                self.peft_config.pop(adapter_name, None)
            raise

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise UserError(
                f"adapter_names: {kwargs['adapter_names']}; rows of one batch cannot have adapters of their "
                "own here; call set_adapter and run each adapter's rows by themselves"
            )
        yield

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Raises UserError: sums are of LoRA alone."""
        raise UserError(
            "add_weighted_adapter: methods other than LoRA have no such sum; merge the adapters one after "
            "the other with merge_adapter, or activate several with base_model.set_adapter([...])"
        )

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        return peft_config  # targets are found by class, not by the model's type

    def _check_target_module_compatiblity(self, *args: Any) -> None:
        """PEFT keeps LoRA off Mamba's out_proj and convolution; here the weights themselves are changed."""

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Finds out what goes where, and refuses what cannot, before anything is changed."""
        if peft_config._empty is not None and loading():
            refuse_empty(peft_config._empty)
        check_names(peft_config, model)
        targets, found = targets_of(peft_config, model), candidates(model)
        check_base(peft_config, model, targets, found)
        check_tensors(peft_config, targets, found)
        check_saved(peft_config, targets, model)
        peft_config._targets = targets

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool:
        return key in peft_config._targets

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        methods, frozen = peft_config._targets[current_key], peft_config.inference_mode
        if isinstance(target, MambaPeftLayer):
            target.update_layer(adapter_name, methods, frozen)
            begin(target)
            return
        family = family_of(target)
        assert family is not None, "found by targets_of"
        layer = MambaPeftLayer(target, family)
        layer.update_layer(adapter_name, methods, frozen)
        self._replace_module(parent, target_name, layer, target)
        begin(layer)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        setattr(parent, child_name, new_module)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Raises UserError for tensors of another base, and takes out what was put in for them; an adapter
        that was there before stays as it was."""
        saved = {key: saved_of(tensor) for key, tensor in state_dict.items()}
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        awaited, config._awaits = config._awaits, False
        with withdraw(model, adapter_name) if awaited else nullcontext():
            check_tensors(config, config._targets, candidates(inner), saved)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    # --- merging ---

    def _check_merge(self, names: list[str] | None) -> None:
        mixers = sum(family.on == "mixer" for _, family in candidates(self.model).values())
        configs = [self.peft_config[name] for name in (self.active_adapters if names is None else names)]
        check_merge(self.model, configs, mixers)

    def _check_merge_allowed(self) -> None:
        """Done by `_check_merge`, which knows the adapters; an embedding's head is untied as it is merged."""

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        self._check_merge(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)
        note_state_size(self.model)

    def disable_adapter_layers(self) -> None:
        if any(layer.merged for layer in layers_of(self.model).values()):
            self.unmerge_adapter()  # all at once, for the configuration says how many states they have
        super().disable_adapter_layers()

    def unmerge_adapter(self) -> None:
        super().unmerge_adapter()
        note_state_size(self.model)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        embeds = merge and any(layer.mixer.table for layer in layers_of(self.model).values())
        if merge:
            self._check_merge(adapter_names)
        elif any(isinstance(module, MambaPeftLayer) and module.merged for module in self.model.modules()):
            self.unmerge_adapter()
        layers = layers_of(self.model).values()
        model = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        for layer in layers:
            end(layer)
        note_state_size(model)
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        if embeds:
            note_untied(model)
        return model
