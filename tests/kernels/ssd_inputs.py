"""Random inputs of the SSD operators, and their references with the operators' defaults."""

from __future__ import annotations

from typing import Any

import torch
from transmamba_kernels.bidirectional_ssd import reference as bidirectional_reference
from transmamba_kernels.ssd_scan import reference


def make(length: int, states: int = 4, groups: int = 2, heads: int = 4, batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(batch, length, heads, 3),
        "delta": normal(batch, length, heads).abs(),
        "A": -normal(heads).abs() - 0.1,
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length, groups, states),
    }


def loop(return_final_state: bool = False, **arguments: Any) -> Any:
    full = dict.fromkeys(("D", "z", "delta_bias", "initial_state", "seq_idx", "lengths"))
    switches = {"delta_softplus": False, "reverse": False, "return_final_state": return_final_state}
    y, state = reference.ssd_scan(**{**full, **switches, **arguments})
    return (y, state) if return_final_state else y


def two_loops(**arguments: Any) -> Any:
    names = ("A_b", "delta_b", "delta_bias", "branch_tokens", "seq_idx", "lengths")
    full: dict[str, Any] = dict.fromkeys(names)
    full |= {"delta_softplus": False, "return_branches": False, **arguments}
    full.pop("quadratic_limit", None)
    return bidirectional_reference.bidirectional_ssd(**full)


def extras(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    heads, batch = arguments["A"].shape[0], arguments["x"].shape[0]
    shapes = {
        "D": (heads,),
        "z": arguments["x"].shape,
        "delta_bias": (heads,),
        "initial_state": (batch, heads, 3, arguments["B"].shape[3]),
        "A_b": (heads,),
        "delta_b": arguments["delta"].shape,
    }
    made = {n: torch.randn(*shapes[n], generator=generator, dtype=torch.float64) for n in names}
    if "A_b" in made:
        made["A_b"] = -made["A_b"].abs()
    for name in {"delta_b", "delta_bias"} & made.keys():
        made[name] = made[name].abs()
    return {**arguments, **made}
