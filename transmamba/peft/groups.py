"""What is trained, in groups for an optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from .merge import layers_of


def parameter_groups(model: nn.Module, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Each with `params`, `lr` and `weight_decay`: multiplied as the methods say for their tensors, as given
    for whatever else is trained, such as a new head."""
    multipliers: dict[int, tuple[float, float]] = {}
    for layer in layers_of(model).values():
        for name, methods in layer.methods.items():
            for method in methods:
                for tensor, value in layer.transmamba_adapters[name].of(method).items():
                    multipliers[id(value)] = method.rate, method.decay_of(tensor)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(multipliers.get(id(parameter), (1.0, 1.0)), []).append(parameter)
    return [
        {"params": parameters, "lr": rate * faster, "weight_decay": weight_decay * heavier}
        for (faster, heavier), parameters in groups.items()
    ]
