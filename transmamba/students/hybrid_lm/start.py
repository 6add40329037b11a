"""What of a Mamba-2 layer's start the teacher's weights do not say: how far its gate is open, and how large
what each head adds is; both by least squares on some text.

in_proj has no bias, so the gate z is opened by rows along which the layer's inputs are nearly constant: w
with w h = 1 for every token h. Shapes: M tokens, D channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.output import Context
from ...views.view import Walker
from .layers import HybridLayer
from .mixer import OPEN_GATE, HybridMixer

if TYPE_CHECKING:
    from .model import HybridStudent

# a teacher's `walk`: inputs of batches through one sublayer after the other
Walk = Callable[[Sequence[Mapping[str, Tensor]], Walker], Iterator[tuple[str, int]]]

# of the words drawn where nobody gives a text
_ROWS, _WORDS = 8, 256
# tokens of which each head's output is made at once
_TOKENS = 128
# in units of the mean square of a channel, or of a head
_RIDGE = 1e-3
# of the usual factor of a layer's heads
_LEAST = 0.1


def calibrate(
    student: HybridStudent,
    walk: Walk,
    kinds: Sequence[str],
    texts: Sequence[Mapping[str, Tensor]],
    layers: int,
    kept: Tensor,
) -> None:
    """Open the gates, and scale the outputs, of those of the first `layers` layers that are Mamba-2's, each
    as soon as the teacher has gone through its attention: what is held is one sublayer's.

    kinds: of the teacher's sublayers
    texts: inputs of batches; without any, words are drawn, the same ones each time
    kept:  the teacher's channel behind each of the student's
    """
    todo = {s: k for k, s in student.sources(kinds).items() if k < layers}
    if not todo:
        return
    rows = [row for text in texts or [_drawn_words(student)] for row in _rows_of(text)]
    contexts, seen = [Context.of(row) for row in rows], dict[str, list[Tensor]]()
    every = torch.equal(kept.cpu(), torch.arange(len(kept)))  # or the first ones

    def observe(_: int, tower: str, s: int, name: str, tensor: Tensor) -> None:
        if tower == "decoder" and s in todo and name in ("input", "output"):
            mine = tensor[..., : len(kept)] if every else tensor[..., kept]
            seen.setdefault(name, []).append(mine)

    for tower, s in walk(rows, observe):
        if tower == "decoder" and s in todo:
            _begin(student.layer(todo.pop(s)), seen["input"], seen["output"], contexts)
            seen.clear()
        if not todo:
            return


def _drawn_words(student: HybridStudent) -> dict[str, Tensor]:
    device = student.lm_head.weight.device
    length = min(_WORDS, student.config.max_position_embeddings)
    seeded = torch.Generator().manual_seed(0)
    return {"text": torch.randint(student.vocabulary, (_ROWS, length), generator=seeded).to(device)}


def _rows_of(text: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """A batch's inputs by themselves, for a mixer's inner tensors are large."""
    for row in range(len(text["text"])):
        yield {name: tensor[row : row + 1] for name, tensor in text.items()}


def _begin(
    layer: HybridLayer, inputs: Sequence[Tensor], wanted: Sequence[Tensor], contexts: Sequence[Context]
) -> None:
    """One layer's gate and outputs. In half precision they are found by a copy in float32, then rounded."""
    norm, mixer = layer.input_layernorm, layer.mamba
    dtype = torch.promote_types(norm.weight.dtype, torch.float32)
    if dtype != norm.weight.dtype:
        norm, mixer = copy.deepcopy(norm).to(dtype), copy.deepcopy(mixer).to(dtype)

    def normed() -> Iterator[tuple[Tensor, Context]]:
        for x, context in zip(inputs, contexts, strict=True):
            yield norm(x.to(dtype)), context

    _open_gate(mixer, normed())
    _scale_output(mixer, normed(), wanted)
    if mixer is not layer.mamba:
        layer.mamba.rows("z").copy_(mixer.rows("z"))
        layer.mamba.norm.weight.copy_(mixer.norm.weight)


def _real(x: Tensor, context: Context) -> Tensor:
    """The real tokens (M, D) of a row x (1, L, D), in float64."""
    return (x[0] if context.mask is None else x[context.mask]).double()


def _open_gate(mixer: HybridMixer, normed: Iterable[tuple[Tensor, Context]]) -> None:
    width = mixer.in_proj.in_features
    square = torch.zeros(width, width, dtype=torch.float64, device=mixer.D.device)
    along = square.new_zeros(width)
    for x, context in normed:
        tokens = _real(x, context)
        square.addmm_(tokens.mT, tokens)
        along += tokens.sum(dim=0)
    square.diagonal().add_(_RIDGE * square.diagonal().mean())
    mixer.rows("z").copy_(OPEN_GATE * torch.linalg.solve(square, along))


def _scale_output(
    mixer: HybridMixer, normed: Iterable[tuple[Tensor, Context]], wanted: Sequence[Tensor]
) -> None:
    """Let the norm's weight carry the factor of each head with which all together are nearest to attention's
    output. It may be negative: a scan without rotary positions may point the other way."""
    heads = mixer.heads
    square = torch.zeros(heads, heads, dtype=torch.float64, device=mixer.D.device)
    along = square.new_zeros(heads)
    columns = mixer.out_proj.weight.double().mT.unflatten(0, (heads, -1))  # (H, P, D)
    for (x, context), target in zip(normed, wanted, strict=True):
        values = _real(mixer(x, context).parts["values"], context).unflatten(-1, (heads, -1))
        pieces = zip(values.split(_TOKENS), _real(target, context).split(_TOKENS), strict=True)
        for each, goal in pieces:  # there are as many streams as heads
            made = (each.transpose(0, 1) @ columns).flatten(1)
            square += made @ made.mT
            along += made @ goal.flatten()
    factors = _least_squares(square, along)
    mixer.norm.weight.copy_((mixer.norm.weight.unflatten(0, (heads, -1)) * factors[:, None]).flatten())


def _least_squares(square: Tensor, along: Tensor) -> Tensor:
    """The factors (H,) with which things of Gram matrix `square` add up to something, `along` it. Each has a
    size that a gradient passes: what adds nothing (a head whose columns are 0) has the others' usual one."""
    size = square.diagonal()
    there = size > 0
    if not there.any():
        return torch.ones_like(along)
    scale = torch.where(there, size, 1.0).rsqrt()
    solved = (
        torch.linalg.solve(
            square * scale[:, None] * scale
            + _RIDGE * torch.eye(len(size), dtype=size.dtype, device=size.device),
            along * scale,
        )
        * scale
    )
    usual = solved[there].abs().median()
    signed = torch.where(solved < 0, -1.0, 1.0)
    return torch.where(there, signed * solved.abs().clamp_min(_LEAST * usual), usual)
