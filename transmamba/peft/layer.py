"""A mixer, or an embedding, with the adapters that change it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from ..errors import UserError
from .families.edit import Edit, InPlace, Swap, home
from .families.family import Family
from .families.inside import Inside
from .families.mixer import Mixer, Place
from .methods.method import Method
from .plan import Plan

CONTAINER = "transmamba_adapters"


class Tensors(nn.Module):
    """One adapter's tensors for one mixer."""

    def __init__(
        self, methods: Sequence[Method], mixer: Mixer, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.method_of: dict[str, str] = {}
        for method in methods:
            for name, start in method.tensors(mixer).items():
                tensor = start.make(device, dtype)
                if start.buffer:
                    self.register_buffer(name, tensor)
                else:
                    self.register_parameter(name, nn.Parameter(tensor))
                self.method_of[name] = method.name

    def of(self, method: Method) -> dict[str, Tensor]:
        """A method's, by name."""
        return {name: getattr(self, name) for name, owner in self.method_of.items() if owner == method.name}


class MambaPeftLayer(nn.Module, BaseTunerLayer):
    """Wraps a whole module, whose own code reads changed weights while it runs; attributes are the module's.

    Without gradients the changed weights are kept between calls, for as long as nothing that they are made of
    changes: generation does not make them anew at every token. `merge` writes them into the module, and its
    own are kept until `unmerge`.
    """

    adapter_layer_names = (CONTAINER,)
    other_param_names = ("methods",)

    def __init__(self, base_layer: nn.Module, family: Family) -> None:
        super().__init__()
        self.base_layer: Any = base_layer
        self.family = family
        self.mixer = family.describe(base_layer)
        self._owner: list[nn.Module] = []  # in a list, for it is no module of this one
        self.methods: dict[str, tuple[Method, ...]] = {}
        self.transmamba_adapters: Any = nn.ModuleDict()
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []
        self._originals: dict[str, nn.Parameter] = {}
        self._attributes: dict[str, Any] = {}
        self.trial: dict[str, Tensor] = {}  # deltas on parameters for a while, no adapter's
        self._kept: Plan | None = None
        self.train(base_layer.training)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            found = getattr(self.base_layer, name)
        if name in self.family.doors:
            return functools.partial(self._called, found, getattr(self.family, name))
        return found

    def update_layer(
        self, adapter_name: str, methods: Sequence[Method], inference_mode: bool = False
    ) -> None:
        """Give the adapter its tensors. Raises UserError for a method that the module cannot take."""
        device, dtype = self._get_base_layer_device_and_dtype(self.base_layer)
        tensors = Tensors(methods, self.mixer, device, dtype)
        if adapter_name in tensors.method_of:
            raise UserError(f"adapter {adapter_name!r} is called as one of its tensors; give it another name")
        self.methods[adapter_name] = tuple(methods)
        self.transmamba_adapters[adapter_name] = tensors
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _get_base_layer_device_and_dtype(self, base_layer: Any) -> tuple[torch.device, torch.dtype]:
        """Of the first parameter; a new tensor is made where the context says, such as on meta."""
        first = next(base_layer.parameters())
        return first.device, first.dtype

    # --- forward ---

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._called(self._modules["base_layer"], self.family.run, *args, **kwargs)

    def _called(self, own: Any, run: Any, *args: Any, **kwargs: Any) -> Any:
        """The module's own code, with changed weights; its family's where an adapter works inside."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        if self._disable_adapters or self.merged_adapters:
            return own(*args, **kwargs)
        plan = self._planned()
        with InPlace(plan.swaps):
            if plan.inside is None:
                return own(*args, **kwargs)
            return run(self.base_layer, plan.inside, *args, **kwargs)

    def _planned(self) -> Plan:
        watch = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        if watch and self._kept is not None and self._kept.holds():
            return self._kept
        active = self._active()
        adapters = [self.transmamba_adapters[name] for name in active]
        # as they are merged: what is kept would else have the precision of whoever called first
        with torch.autocast(next(self.base_layer.parameters()).device.type, enabled=False):
            edited = self._edited(active)
        plan = Plan(edited, self.inside(), adapters, watch)
        self._kept = plan if watch else None
        return plan

    def _active(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.methods]

    @property
    def owner(self) -> nn.Module | None:
        """The module whose stream begins here, where methods change what it has besides."""
        return self._owner[0] if self._owner else None

    def begin(self, owner: nn.Module) -> None:
        self._owner = [owner]

    def end(self) -> None:
        self._owner = []

    def owner_table(self) -> dict[str, Any] | None:
        return None if self.owner is None else self.owner._parameters

    def swaps(self) -> list[Swap]:
        """What stands where while the active adapters are at work."""
        return self._planned().swaps

    def active_methods(self) -> list[Method]:
        return [method for name in self._active() for method in self.methods[name]]

    def replace(self, adapter_name: str, old: Method, new: Method, tensors: dict[str, Tensor]) -> None:
        """A method by another that says the same with fewer tensors."""
        self._forget()
        self.methods[adapter_name] = tuple(new if m is old else m for m in self.methods[adapter_name])
        held = self.transmamba_adapters[adapter_name]
        for name in held.of(old):
            if name in tensors:
                getattr(held, name).copy_(tensors[name])
            else:
                delattr(held, name)
                del held.method_of[name]

    def inside(self) -> Inside:
        """What the active adapters add within."""
        inside = Inside()
        for name in self._active():
            for method in self.methods[name]:
                method.enter(inside, self.mixer, self.transmamba_adapters[name].of(method))
        return inside

    def _edited(self, names: Sequence[str], merging: bool = False) -> Edit:
        edit = Edit(self.base_layer, self.mixer, merging, self.owner)
        for path, delta in self.trial.items():
            edit.add(Place(path), delta)
        pairs = [(name, method) for name in names for method in self.methods[name]]
        for name, method in sorted(pairs, key=lambda pair: pair[1].late):
            method.edit(edit, self.transmamba_adapters[name].of(method))
        return edit

    def _forget(self) -> None:
        self._kept = None

    def train(self, mode: bool = True) -> MambaPeftLayer:
        self._forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return super()._apply(*args, **kwargs)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        self._forget()
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        self._forget()
        super().delete_adapter(adapter_name)

    # --- merging ---

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write what the adapters change into the module. Raises UserError where weights cannot hold it."""
        chosen = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.methods]
        if not chosen:
            return
        for name in chosen:
            refuse_merge(self.methods[name])
        # all at once, those that are merged already with them: one may move the rows that another adds to
        self._restore()
        edit = self._edited([*self.merged_adapters, *chosen], merging=True)
        if safe_merge:
            for path, weight in edit.weights.items():
                if not torch.isfinite(weight).all():
                    raise ValueError(f"{path} of adapter {', '.join(chosen)} is not finite; it is not merged")
        for path, weight in edit.weights.items():
            module, name = home(self.base_layer, self.owner, path)
            table: Any = module._parameters
            self._originals[path] = table[name]
            table[name] = nn.Parameter(weight.detach(), requires_grad=False)
        for path, value in edit.attributes.items():
            module, name = home(self.base_layer, self.owner, path)
            self._attributes[path] = getattr(module, name)
            setattr(module, name, value)
        self._forget()
        self.merged_adapters.extend(chosen)

    def unmerge(self) -> None:
        """The module's own weights again, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._restore()
        self.merged_adapters.clear()

    def _restore(self) -> None:
        for path, parameter in self._originals.items():
            module, name = home(self.base_layer, self.owner, path)
            module._parameters[name] = parameter
        for path, value in self._attributes.items():
            module, name = home(self.base_layer, self.owner, path)
            setattr(module, name, value)
        self._originals, self._attributes = {}, {}
        self._forget()


def refuse_merge(methods: Sequence[Method]) -> None:
    """UserError where a method is more than changed weights."""
    stuck = [method.name for method in methods if not method.merges]
    if stuck:
        raise UserError(
            f"{', '.join(stuck)} cannot be merged: no weights of the model say the same; "
            "keep the adapter beside it, or train one without"
        )
