"""How much of a model an adapter reaches, and whether all of it learns."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import UserError
from .asked import listed
from .layer import CONTAINER, MambaPeftLayer
from .targets import candidates, described, strangers


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """mixers:     how many are adapted, and how many there are, those that adapters do not know among them
    parameters: those that are trained, those of the modules that are adapted, and all of the base
    flops:      the adapted modules' share of the base's multiplications for a token; attention's between
                tokens are not among them, for they depend on the length
    methods:    names, in the order of the configuration
    """

    mixers: tuple[int, int]
    trained: int
    adapted: int
    parameters: int
    flops: float
    methods: tuple[str, ...]

    def __str__(self) -> str:
        (some, mixers), whole = self.mixers, max(self.parameters, 1)
        share = self.trained / (whole + self.trained)
        return (
            f"adapter of {', '.join(self.methods) or 'nothing'}: {some} of {mixers} mixers; "
            f"{self.trained:,} parameters are trained, {share:.3%} of all with the base's {whole:,}; what is "
            f"adapted holds {self.adapted / whole:.1%} of its parameters and {self.flops:.1%} of its FLOPs"
        )


def coverage(model: nn.Module) -> Coverage:
    """Of the adapters that are active in a model."""
    found = candidates(model)
    mixers = [module for module, family in found.values() if family.on == "mixer"]
    wrapped = [m for m, _ in found.values() if isinstance(m, MambaPeftLayer) and m.active_methods()]
    trained = [p for _, p in adapter_parameters(model) if p.requires_grad]
    trained_ids, inside = (
        {id(p) for p in trained},
        {id(p) for m in wrapped for p in m.base_layer.parameters()},
    )
    base = {id(p): p for name, p in model.named_parameters() if f".{CONTAINER}." not in f".{name}"}
    methods = [method.name for layer in wrapped for method in layer.active_methods()]
    extra = sum(p.numel() for key, p in base.items() if p.requires_grad and key not in trained_ids)
    whole = flops(model)
    return Coverage(
        mixers=(sum(module in wrapped for module in mixers), len(mixers) + len(strangers(model))),
        trained=sum(p.numel() for p in trained) + extra,
        adapted=sum(p.numel() for key, p in base.items() if key in inside),
        parameters=sum(p.numel() for p in base.values()),
        flops=sum(flops(layer) for layer in wrapped) / whole if whole else 0.0,
        methods=tuple(dict.fromkeys(methods)),
    )


def adapter_parameters(model: nn.Module, mark: str = f".{CONTAINER}.") -> list[tuple[str, nn.Parameter]]:
    """Names and tensors of all adapters, active or not."""
    return [(name, p) for name, p in model.named_parameters() if mark in f".{name}"]


def flops(model: nn.Module) -> int:
    """Multiplications for a token, of linear layers, convolutions and scans (three for each state)."""
    count = 0
    for name, module in model.named_modules():
        if CONTAINER in name.split("."):
            continue
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            count += module.weight.numel()
    for module, family in candidates(model).values():
        mixer = described(module, family)
        count += 3 * mixer.inner * mixer.state * len(mixer.directions)
    return count


def refuse_dead(model: nn.Module, output: Any, mark: str = f".{CONTAINER}.") -> None:
    """Raises UserError where trained tensors of adapters reach none of the tensors in `output`, the names of
    those that do beside theirs. Of those that reentrant checkpoints hide it warns, by name; of an output
    without any tensor it says nothing.

    mark: what the names of an adapter's tensors have in them
    """
    trained = {p: name for name, p in adapter_parameters(model, mark) if p.requires_grad}
    made = [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]
    nodes: list[Any] = [tensor.grad_fn for tensor in made]
    reached, seen, hidden = set(), set(), False
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        hidden |= node.name() == "CheckpointFunctionBackward"
        if hasattr(node, "variable"):
            reached.add(node.variable)
        nodes += [above for above, _ in node.next_functions]
    dead = [name for parameter, name in trained.items() if parameter not in reached]
    if not dead or not made:
        return
    if hidden:
        warnings.warn(
            f"whether a gradient reaches {listed(dead)} is not known: reentrant checkpoints hide it; "
            "use_reentrant=False shows it",
            stacklevel=2,
        )
        return
    alive = sorted({name.rpartition(".")[2] for p, name in trained.items() if p in reached})
    raise UserError(
        f"no gradient reaches {listed(dead)}: what they adapt is not run; "
        + (f"a gradient reaches {', '.join(alive)}" if alive else f"none reaches the adapter{why(model)}")
    )


def tensors_of(output: Any) -> list[Tensor]:
    """All that a model gives, in whatever it gives them."""
    leaves = tree_leaves(output)
    inner = [vars(leaf) for leaf in leaves if is_dataclass(leaf) and not isinstance(leaf, type)]
    return [leaf for leaf in leaves + tree_leaves(inner) if isinstance(leaf, Tensor)]


def why(model: nn.Module) -> str:
    """What may be the reason where nothing of an adapter has a graph; nothing where none is known."""
    if any(isinstance(module, MambaPeftLayer) and module.merged for module in model.modules()):
        return ", which is merged: call unmerge_adapter() before training"
    if any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules()):
        return "; reentrant checkpoints need inputs with gradients: call enable_input_require_grads()"
    return ""
