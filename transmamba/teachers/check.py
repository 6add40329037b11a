"""Whether a view computes what its module computes: looked at once, before anything is distilled from it.

A view reads weights by name. What else acts in a module (an injected adapter, a subclass of nn.Linear, a
forward hook) it cannot see; so both are run on random input, and what differs is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..core.output import Capture
from ..views.view import View
from .teacher import Teacher, refuse

_ROWS = 2
# largest difference, relative to the largest number, by the type of the weights
_MOST = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
_MOST_ON_GPU = 1e-3  # whose convolutions round float32 to TF32
_PLAIN = ("torch", "timm", "transformers")  # where classes come from whose forward the view knows
_NAMED = 4


@torch.no_grad()
def check_view(
    teacher: Teacher, module: nn.Module, logits: Callable[..., Any], stream: Callable[..., Any]
) -> None:
    """Compare logits, or, where the view has no head, the last stream after its norm.

    logits, stream: from the module and images (B, C, H, W)

    The module's modes and the random generators are left as they were. Raises UserError naming the submodules
    that are not as their library makes them.
    """
    weight = teacher.view.tensor
    if weight.is_meta:
        return
    size = (_ROWS, *teacher.preprocessing.input_size)
    images = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    with _undisturbed(module, weight.device):
        made = _read(teacher.view, images)
        try:
            wanted = (logits if teacher.view.heads else stream)(module, images)
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise refuse(type(module).__name__, f"its own forward fails: {first}") from error
    if made.shape != wanted.shape:
        raise refuse(
            type(module).__name__, f"it makes {_shape(wanted)}, its view {_shape(made)}{_suspects(module)}"
        )
    wanted = wanted.double()
    apart = float((made.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
    if not apart <= max(_MOST[weight.dtype], _MOST_ON_GPU if weight.is_cuda else 0):
        raise refuse(
            type(module).__name__,
            f"something acts in it that its weights do not say ({100 * apart:.2g} % off){_suspects(module)}",
        )


def _read(view: View, images: Tensor) -> Tensor:
    tower = view.towers["image"]
    last = len(tower.sublayers) - 1
    output = view.run({"image": images}, {"image": Capture(hidden=frozenset({last}))})
    if output.logits is not None:
        return output.logits()
    hidden = output.stream.hidden[last]
    return hidden if tower.norm is None else tower.norm(hidden)


@contextlib.contextmanager
def _undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """In evaluation mode and without autocast; afterwards every submodule's mode and the generators are as
    before."""
    modes = {each: each.training for each in module.modules()}
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), torch.autocast(device.type, enabled=False):
        module.eval()
        try:
            yield
        finally:
            for each, training in modes.items():
                each.training = training


def _suspects(module: nn.Module) -> str:
    """`; look at blocks.0.attn.qkv (LoraLinear) ...`: submodules that are not as their library makes them."""
    found = [
        f"{name or 'itself'} ({why})" for name, each in module.named_modules() if (why := _unusual(each))
    ]
    if not found:
        return ""
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return (
        f"; look at {', '.join(found[:_NAMED])}{more}: merge adapters into the weights first (peft: "
        "merge_and_unload), and take hooks away"
    )


def _unusual(module: nn.Module) -> str | None:
    kind = type(module)
    if kind.__module__.partition(".")[0] not in _PLAIN:
        return kind.__qualname__
    if "forward" in vars(module):
        return "a forward of its own"
    if module._forward_hooks or module._forward_pre_hooks:
        return "a forward hook"
    return "parametrized" if hasattr(module, "parametrizations") else None


def plain_linear(module: Any, name: str) -> nn.Linear:
    """Raises UserError for what is no linear, by its place and class."""
    if not isinstance(module, nn.Linear):
        kind = type(module)
        raise refuse(
            name,
            "only plain linears are known; merge adapters into the weights first",
            kind=f"{kind.__module__}.{kind.__qualname__}",
        )
    return module


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
