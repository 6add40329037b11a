"""Whether a view computes what its module computes: looked at once, before anything is distilled from it.

A view reads weights by name. What else acts in a module (an injected adapter, a subclass of nn.Linear, a
forward hook) it cannot see; so both are run on random input, and what differs is refused.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.output import Capture
from ..ecosystems.generation import evaluating
from ..views.embeddings import ImageEmbedding, Spliced, TokenEmbedding
from ..views.heads import Embedder, EndOfText, Head
from ..views.sublayers import Affine, Norm
from ..views.view import View
from .teacher import Teacher, refuse

_ROWS = 2
_WORDS = 12
# largest difference, relative to the largest number, by the type of the weights
_MOST = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
_MOST_ON_GPU = 1e-3  # whose convolutions round float32 to TF32
# the same where every stream is looked at: docs/teachers.md's; half precision's are some ten of its roundings
_BARS = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
# where classes come from whose forward the view knows
_PLAIN = ("torch", "timm", "transformers", "open_clip")
_NAMED = 4


@dataclass(frozen=True)
class Original:
    """A module as its own library runs it, for its view to be held against.

    outputs: of a batch's inputs: `logits`, `embedding.TOWER` of length 1, `end.TOWER` the last stream after
        the last norm; those that the view makes too
    blocks:  by tower, the submodules that each return a residual stream (first of a tuple)
    words:   how long a random text is, for a module that takes texts of one length
    """

    module: nn.Module
    outputs: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    blocks: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    words: int = _WORDS


def check_view(teacher: Teacher, original: Original) -> None:
    """Compare logits and embeddings, or, where the view has no head, the last stream after its norm.

    The module's modes and the random generators are left as they were. Raises UserError naming the submodules
    that are not as their library makes them.
    """
    weight = teacher.view.tensor
    if weight.is_meta:
        return
    kind, module = type(original.module).__name__, original.module
    try:
        apart = max(differences(teacher, original, streams=False).values(), default=0.0)
    except Unlike as error:
        raise refuse(kind, f"{error}{_suspects(module)}") from error
    except Fails as error:
        raise refuse(kind, str(error)) from error
    if not apart <= _at_most(_MOST, weight):
        raise refuse(
            kind,
            f"something acts in it that its weights do not say ({100 * apart:.2g} % off){_suspects(module)}",
        )


def bar(weight: Tensor) -> float:
    """The most that any output or stream of a view with such weights may differ from its module's."""
    return _at_most(_BARS, weight)


def _at_most(bars: Mapping[torch.dtype, float], weight: Tensor) -> float:
    """What a table allows weights of this type, and of where they lie."""
    return max(bars[weight.dtype], _MOST_ON_GPU if weight.is_cuda else 0)


class Unlike(Exception):
    """Module and view make tensors of other shapes."""


class Fails(Exception):
    """The module cannot be run."""


@torch.no_grad()
def differences(
    teacher: Teacher,
    original: Original,
    inputs: Mapping[str, Tensor] | None = None,
    *,
    streams: bool = True,
) -> dict[str, float]:
    """Largest difference of view and module, relative to the module's largest number, of each output and,
    with `streams`, of each residual stream (`stream.TOWER.BLOCK`).

    inputs: random ones where left out (`random_inputs`)
    """
    view, weight = teacher.view, teacher.view.tensor
    if inputs is None:
        inputs = random_inputs(view, teacher.preprocessing, weight.dtype, words=original.words)
    inputs = {name: tensor.to(weight.device) for name, tensor in inputs.items()}
    with _undisturbed(original.module, weight.device):
        kept: dict[str, Tensor] = {}
        try:
            with _watching(original.blocks if streams else {}, kept):
                kept.update(original.outputs(inputs))
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Fails(f"its own forward fails: {first}") from error
        made = _made(view, inputs, streams)
    found = {}
    for name in sorted(made.keys() & kept.keys()):
        if not kept[name].isfinite().all():
            raise Fails(f"{name} of its own is not finite; look for NaN and inf in its weights")
        if made[name].shape != kept[name].shape:
            raise Unlike(f"it makes {_shape(kept[name])}, its view {_shape(made[name])}")
        found[name] = _apart(made[name], kept[name])
    assert found, "view and module have an output in common"
    return found


def _apart(made: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double()
    apart = float((made.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
    return math.inf if math.isnan(apart) else apart  # so that no comparison overlooks it


def random_inputs(
    view: View, preprocessing: Any, dtype: torch.dtype, rows: int = _ROWS, words: int = _WORDS
) -> dict[str, Tensor]:
    """Standard normal images (N, C, H, W) and uniform words (N, L), with the places that an image's tokens
    take and the token that ends a text; from seed 0."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, tower in view.towers.items():
        embedding = tower.embedding
        if isinstance(embedding, ImageEmbedding):
            size = (rows, *preprocessing.input_size)
            made["image"] = torch.randn(size, generator=generator).to(dtype)
        elif isinstance(embedding, TokenEmbedding | Spliced):
            table = embedding.tokens if isinstance(embedding, Spliced) else embedding
            length = words if table.positions is None else min(words, len(table.positions))
            text = torch.randint(0, len(table.weight), (rows, length), generator=generator)
            text = _with_end(text, view.heads.get(name))
            made["text"] = _with_places(text, view, embedding) if isinstance(embedding, Spliced) else text
    for opaque in view.opaque.values():
        made.setdefault(opaque.reads, torch.randint(1, 100, (rows, words), generator=generator))
    return made


def _with_end(text: Tensor, head: Head | None) -> Tensor:
    """The token that ends a text, late and at another place in each row; without one the first word alone
    would be pooled, which reads no other."""
    how = head.pool if isinstance(head, Embedder) else None
    if isinstance(how, EndOfText) and how.token is not None:
        for row in range(len(text)):
            text[row, text.shape[1] - 1 - row] = how.token
    return text


def _with_places(text: Tensor, view: View, embedding: Spliced) -> Tensor:
    """An image's places after the first word; no other word is one."""
    layout: Any = view.towers[embedding.source].layout
    means = embedding.connector.means
    count = layout.length if embedding.special else layout.num_patches
    count = count if means is None else means.tokens
    places = text.new_full((len(text), count), embedding.token)
    text = torch.where(text == embedding.token, 0 if embedding.token else 1, text)
    return torch.cat([text[:, :1], places, text[:, 1:]], dim=1)


def _made(view: View, inputs: Mapping[str, Tensor], streams: bool) -> dict[str, Tensor]:
    captures = {
        name: Capture(hidden=frozenset(tower.ends) | {len(tower.sublayers) - 1})
        for name, tower in view.towers.items()
        if streams or name not in view.heads
    }
    output, made = view.run(inputs, captures), dict[str, Tensor]()
    if output.logits is not None:
        made["logits"] = output.logits()
    made |= {f"embedding.{name}": tensor for name, tensor in output.embeddings.items()}
    for name, stream in output.streams.items():
        tower = view.towers[name]
        if streams:
            made |= {f"stream.{name}.{t}": stream.hidden[end] for t, end in enumerate(tower.ends)}
        if name in captures and tower.sublayers:
            hidden = stream.hidden[len(tower.sublayers) - 1]
            made[f"end.{name}"] = hidden if tower.norm is None else tower.norm(hidden)
    return made


@contextlib.contextmanager
def _watching(blocks: Mapping[str, Sequence[nn.Module]], kept: dict[str, Tensor]) -> Iterator[None]:
    """Within it what each block returns is kept."""

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, returned: Any) -> None:
            kept[name] = returned[0] if isinstance(returned, tuple) else returned

        return hook

    handles = [
        block.register_forward_hook(keep(f"stream.{tower}.{t}"))
        for tower, of in blocks.items()
        for t, block in enumerate(of)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """In evaluation mode and without autocast; afterwards every submodule's mode and the generators are as
    before."""
    cards = [device] if device.type == "cuda" else []
    autocast = torch.autocast(device.type, enabled=False)
    with torch.random.fork_rng(devices=cards), autocast, evaluating(module):
        yield


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


def affine(module: Any, name: str) -> Affine:
    """A linear; `name` is its place, for the error where it is none."""
    linear = plain_linear(module, name)
    return Affine(linear.weight, linear.bias)


def layer_norm(module: nn.LayerNorm) -> Norm:
    return Norm(module.weight, module.bias, module.eps)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
