"""What the two steps of the search choose from: MambaPEFT (https://arxiv.org/abs/2411.03855), section 4, with
the sizes of its code.

Step 1 turns each method on or off at its smallest size; step 2 takes the best set and chooses sizes, scales,
and multipliers of rate and weight decay, and may leave at most one method out. A choice is a mapping by name,
as optuna has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...config.registry import METHODS

Parts = list[dict[str, Any]]
NONE = "none"


class Suggests(Protocol):
    """Of optuna's trial, what is asked here."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


@dataclass(frozen=True)
class Size:
    """A method's option that makes it larger.

    least: in step 1; low, high, step: in step 2
    """

    option: str
    least: int
    low: int
    high: int
    step: int = 1


WIDE, NARROW = Size("r", 8, 4, 16, 4), Size("r", 4, 4, 12, 4)
TOKENS = Size("tokens", 1, 1, 3)
SIZES: dict[str, Size | None] = {
    **dict.fromkeys(("lora_out", "lora_in", "lora_x", "lora_z", "lora_embed"), WIDE),
    **dict.fromkeys(("lora_x_proj", "lora_d", "lora_c"), Size("r", 4, 4, 16, 4)),
    **dict.fromkeys(("lora_b", "lora_dt"), NARROW),
    **dict.fromkeys(("affix", "prompt"), TOKENS),
    "additional_scan": Size("states", 1, 1, 6),
    **dict.fromkeys(("a", "d", "conv1d", "cls_token", "pos_embed", "bias")),
    # not in MambaPEFT's space
    "parallel_adapter": WIDE,
    **dict.fromkeys(("state_offset_h", "state_offset_y", "initial_state")),
}
# of step 1, where they are not a method's own
AT_FIRST: dict[str, dict[str, Any]] = {
    "lora_x_proj": {"rate": 0.1},
    "bias": {"decay": 10.0},
}
SCALE, RATE, DECAY, PARTIAL_DECAY = (0.01, 1.0), (0.1, 5.0), (0.1, 10.0), (0.1, 100.0)
# sets that are known to be good, tried first: partial LoRA on X, and what MambaPEFT's search found
KNOWN: tuple[tuple[str, ...], ...] = (
    ("lora_x",),
    ("lora_out", "lora_in", "lora_x", "lora_b", "lora_dt", "affix", "a", "cls_token"),
)


def known_sets(names: Sequence[str], more: Sequence[Sequence[str]] = ()) -> list[dict[str, bool]]:
    """Choices of step 1 that are tried first, each once, of the methods that a model takes."""
    found: list[dict[str, bool]] = []
    for methods in (*more, *KNOWN):
        choice = {name: name in methods for name in names}
        if any(choice.values()) and choice not in found:
            found.append(choice)
    return found


def smallest(name: str) -> dict[str, Any]:
    """A method as step 1 has it."""
    size = SIZES[name]
    options = {} if size is None else {size.option: size.least}
    return {"name": name, **options, **AT_FIRST.get(name, {})}


def first(trial: Suggests, names: Sequence[str]) -> Parts:
    """Of these methods those that are on; none at all may be."""
    chosen = [name for name in names if trial.suggest_categorical(name, [False, True])]
    return [smallest(name) for name in chosen]


def as_first(methods: Sequence[str]) -> dict[str, Any]:
    """The choice of step 2 that is step 1's set as it was."""
    choice: dict[str, Any] = {"remove": NONE}
    for name in methods:
        known, size = smallest(name), SIZES[name]
        default = METHODS[name]()
        if size is not None:
            choice[f"{name}.{size.option}"] = known[size.option]
        if hasattr(default, "scale"):
            choice[f"{name}.scale"] = default.scale
        choice[f"{name}.rate"] = known.get("rate", default.rate)
        choice[f"{name}.decay"] = known.get("decay", default.decay)
    return choice


def second(trial: Suggests, methods: Sequence[str]) -> Parts:
    """Those of the set that are left, with their sizes. What a removed method would have had is chosen, too,
    so that every trial has the same choices."""
    removable = [NONE, *methods] if len(methods) > 1 else [NONE]
    removed, parts = trial.suggest_categorical("remove", removable), []
    for name in methods:
        part: dict[str, Any] = {"name": name}
        size, default = SIZES[name], METHODS[name]()
        if size is not None:
            part[size.option] = trial.suggest_int(
                f"{name}.{size.option}", size.low, size.high, step=size.step
            )
        if hasattr(default, "scale"):
            part["scale"] = trial.suggest_float(f"{name}.scale", *SCALE, log=True)
        part["rate"] = trial.suggest_float(f"{name}.rate", *RATE, log=True)
        decays = PARTIAL_DECAY if default.decay >= 10 else DECAY
        part["decay"] = trial.suggest_float(f"{name}.decay", *decays, log=True)
        if name != removed:
            parts.append(part)
    return parts


def names_of(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    return [part["name"] for part in parts]
