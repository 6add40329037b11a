"""How large methods of adapters must be to train a share of a model: what studies of adapters write.

    python scripts/peft_sizes.py vim_mini_patch4_32 --shares 0.1,0.5,2

For each method with a size (a rank, states, tokens) and each share, in percent: its size, and where size 1 on
all layers is more than the share, on which layers, evenly spaced; `-` where nothing is within a factor of 1.4
of the share. The model is a timm name, or a folder with a transformers config.json; nothing is loaded, and
counted is what would be trained, of real modules without memory.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# method -> the option that is its size, and the largest that is sensible: full rank, tokens that crowd others
SIZED = {
    **{f"lora_{part}": ("r", 256) for part in ("in", "x", "z", "out", "x_proj", "dt", "d", "b", "c")},
    "lora_embed": ("r", 256),
    "parallel_adapter": ("r", 256),
    "additional_scan": ("states", 32),
    "affix": ("tokens", 32),
    "prompt": ("tokens", 32),
    "state_offset_h": ("r", 64),
}
WITHIN = 1.4  # a size is near a share where it is no more times larger, or smaller


@dataclass(frozen=True)
class Size:
    """options: of the method; layers: that take it, () for all; trained: parameters; share: of the base's"""

    options: dict[str, Any]
    layers: tuple[int, ...]
    trained: int
    share: float


class Counter:
    """Parameters that an adapter would train on a model, by its methods and layers."""

    def __init__(self, make: Any) -> None:
        from transmamba.peft.targets import candidates, described

        self.make = make
        with torch.device("meta"):
            model = make()
        self.parameters = sum(p.numel() for p in model.parameters())
        found = {name: pair for name, pair in candidates(model).items() if pair[1].on == "mixer"}
        self.mixers = {_number(name): described(*pair) for name, pair in found.items()}

    def trained(self, methods: list[Any], layers: Sequence[int] = ()) -> int:
        """Raises UserError for what the model cannot take."""
        from transmamba.peft.config import read

        parts = read(methods)
        if any(part.on != "mixer" for part in parts):
            return self.injected(methods, layers)
        mixers = [mixer for number, mixer in self.mixers.items() if not layers or number in layers]
        starts = [start for mixer in mixers for part in parts for start in part.tensors(mixer).values()]
        return sum(math.prod(start.shape) for start in starts if not start.buffer)

    def injected(self, methods: list[Any], layers: Sequence[int] = ()) -> int:
        """The same, of an adapter that was put on the model."""
        from peft import get_peft_model

        from transmamba.peft import MambaPeftConfig

        with torch.device("meta"):
            model = self.make()
            config = MambaPeftConfig(methods=methods, layers_to_transform=list(layers) or None)
            get_peft_model(model, config)
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def nearest(self, method: str, share: float) -> Size | None:
        """The size whose count is nearest to a share of the base's parameters, if any is near."""
        from transmamba.peft.config import read

        option, most = SIZED[method]
        wanted = share * self.parameters
        one, numbers = self.trained([{"name": method, option: 1}]), list(self.mixers)
        size = min(most, max(1, round(wanted / one)))
        found = [self._sized(method, {option: each}, ()) for each in {size, min(size + 1, most)}]
        if one > wanted and read([method])[0].on == "mixer":
            part = min(len(numbers), max(1, round(len(numbers) * wanted / one)))
            layers = tuple(numbers[len(numbers) * k // part] for k in range(part))
            found.append(self._sized(method, {option: 1}, layers if part < len(numbers) else ()))
        best = min(found, key=lambda size: abs(math.log(size.trained / wanted)))
        return best if 1 / WITHIN <= best.trained / wanted <= WITHIN else None

    def _sized(self, method: str, options: dict[str, Any], layers: tuple[int, ...]) -> Size:
        trained = self.trained([{"name": method, **options}], layers)
        return Size(options, layers, trained, trained / self.parameters)


def _number(name: str) -> int:
    """Of the layer that a module's name says."""
    return int(next(part for part in name.split(".") if part.isdecimal()))


def maker(model: str) -> Any:
    """What makes the model, on whatever device is set."""
    folder = Path(model)
    if (folder / "config.json").is_file():
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder)
        return lambda: AutoModelForCausalLM.from_config(config)
    import timm

    import transmamba  # noqa: F401  its models are timm's then

    return lambda: timm.create_model(model, gate_bias=True)


def lines(counter: Counter, shares: Sequence[float]) -> Iterator[str]:
    for method in SIZED:
        found = [counter.nearest(method, share / 100) for share in shares]
        told = [
            "-"
            if size is None
            else f"{json.dumps({'name': method, **size.options})} on {list(size.layers) or 'all'}: "
            f"{size.trained:,}, {100 * size.share:.3f} %"
            for size in found
        ]
        yield f"{method}: " + "; ".join(told)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--shares", default="0.1,0.5,2", help="percent")
    arguments = parser.parse_args(argv)
    counter = Counter(maker(arguments.model))
    print(f"{counter.parameters:,} parameters, {len(counter.mixers)} mixers")
    for line in lines(counter, [float(share) for share in arguments.shares.split(",")]):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
