"""What writes for a teacher: the model of its own library, of the tensors that its view holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..core.preprocessing import PicturesAndText
from ..core.text import TextOnly
from ..ecosystems.generation import generate
from ..views.sublayers import named_tensors
from ..views.view import View


class Writer:
    """The model of its own library, which writes with a cache, as no view does. It is made when it is first
    asked, and goes where its inputs are; what the view has as it was read is held once, by both.

    make:   loads it, or copies one in hand: where the view does not have all of it, being folded, or with
        blocks that lie elsewhere
    module: what the view was made of; it is not held, but for tensors that the view does not have
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        preprocessing: TextOnly | PicturesAndText | None,
        module: nn.Module,
        view: View,
    ) -> None:
        self._make, self._preprocessing = make, preprocessing
        # places in the view -> names in the module of the same tensor
        self._names = _whole(module, view)
        self._bare = None if _parts(module, view) else _without(module, self._names)
        self._model: Any = None
        self._given: dict[str, Tensor] = {}

    def read_by(
        self, make: Callable[[], nn.Module], preprocessing: TextOnly | PicturesAndText | None
    ) -> Writer:
        """The same that is loaded otherwise, and knows the words that lie beside it."""
        other = copy.copy(self)
        other._make, other._preprocessing = make, preprocessing
        return other

    def __call__(self, inputs: Mapping[str, Tensor], limit: int, held: Mapping[str, Tensor]) -> Tensor:
        """held: the view's tensors that are as they were read, by their places"""
        ends = () if self._preprocessing is None else (self._preprocessing.text.eos,)
        return generate(self._model_of(held).to(inputs["text"].device), inputs, limit, ends=ends)

    def _model_of(self, held: Mapping[str, Tensor]) -> Any:
        """The model, whose tensors are the held ones wherever it has one."""
        given = {place: held[place] for place in self._names if place in held}
        same = given.keys() == self._given.keys() and all(given[p] is self._given[p] for p in given)
        if self._model is None or not same:
            whole = self._bare is not None and given.keys() == self._names.keys()
            model: Any = copy.deepcopy(self._bare) if whole else self._make()
            for place, tensor in given.items():
                names = self._names[place]
                shape = model.get_parameter(names[0]).shape
                shared = nn.Parameter(tensor.view(shape), requires_grad=False)
                for name in names:
                    _set(model, name, shared)
            self._model, self._given = model, given
        return self._model


def _whole(module: nn.Module, view: View) -> dict[str, list[str]]:
    """Of each tensor of the view that is one of the module's, as it lies there, its names there."""
    names: dict[Any, list[str]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        if not tensor.is_meta:
            names.setdefault(_identity(tensor), []).append(name)
    found = {
        place: names.get(_identity(tensor)) for place, tensor in named_tensors(view) if not tensor.is_meta
    }
    return {place: each for place, each in found.items() if each}


def _parts(module: nn.Module, view: View) -> bool:
    """Whether the view has tensors of the module in pieces, or turned round."""
    mine = {_storage(tensor) for tensor in module.parameters() if not tensor.is_meta}
    whole = {_identity(tensor) for tensor in module.parameters()}
    return any(
        tensor.is_meta or (_storage(tensor) in mine and _identity(tensor) not in whole)
        for _, tensor in named_tensors(view)
    )


def _without(module: nn.Module, names: Mapping[str, list[str]]) -> nn.Module:
    """A copy without numbers where the view has them; the rest, which is little, is the module's own."""
    taken = {name for each in names.values() for name in each}
    memo: dict[int, Any] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        mine = nn.Parameter(tensor.detach().to("meta"), requires_grad=False) if name in taken else tensor
        memo.setdefault(id(tensor), mine)
    return copy.deepcopy(module, memo)


def _set(model: nn.Module, name: str, tensor: nn.Parameter) -> None:
    inside, _, own = name.rpartition(".")
    setattr(model.get_submodule(inside), own, tensor)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Of its numbers, in their order: a class token is (D,) in one place and (1, D) in another."""
    order = None if tensor.is_contiguous() else tensor.stride()
    return tensor.data_ptr(), tensor.numel(), order, tensor.dtype


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
