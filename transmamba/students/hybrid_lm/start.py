"""What of a Mamba-2 layer's start the teacher's weights do not say: how far its gate is open, and how large
what each head adds is; both by least squares on some text.

in_proj has no bias, so the gate z is opened by rows along which the layer's inputs are nearly constant: w
with w h = 1 for every token h. Shapes: M tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.output import Capture, Captures, Context, Output
from .mixer import OPEN_GATE, HybridMixer

if TYPE_CHECKING:
    from .model import HybridStudent

Teacher = Callable[[Mapping[str, Tensor], Captures], Output]

# of the words drawn where nobody gives a text
_ROWS, _WORDS = 8, 256
# in units of the mean square of a channel, or of a head
_RIDGE = 1e-3
# of the usual factor of a layer's heads
_LEAST = 0.1


def calibrate(
    student: HybridStudent,
    teacher: Teacher,
    kinds: Sequence[str],
    texts: Sequence[Mapping[str, Tensor]],
    layers: int,
) -> None:
    """Open the gates, and scale the outputs, of those of the first `layers` layers that are Mamba-2's.

    teacher: what the teacher makes of inputs, with what is captured
    kinds:   of its sublayers
    texts:   inputs of batches; without any, words are drawn, the same ones each time
    """
    converted = student.sources(kinds).items()
    sources = {k: s for k, s in converted if k < layers and student.layer(k).scans}
    if not sources:
        return
    texts = texts or [_drawn_words(student)]
    capture = Capture(mixers=dict.fromkeys(sources.values(), frozenset(("input", "output"))))
    taught = [teacher(inputs, {"decoder": capture}).streams["decoder"].mixers for inputs in texts]
    contexts = [Context.of(inputs) for inputs in texts]
    dtype = student.lm_head.weight.dtype
    for k, s in sources.items():
        inputs = [mixers[s]["input"].to(dtype) for mixers in taught]
        wanted = [mixers[s]["output"].to(dtype) for mixers in taught]
        _open_gate(student, k, inputs, contexts)
        _scale_output(student, k, inputs, wanted, contexts)


def _drawn_words(student: HybridStudent) -> dict[str, Tensor]:
    device = student.lm_head.weight.device
    length = min(_WORDS, student.config.max_position_embeddings)
    seeded = torch.Generator().manual_seed(0)
    return {"text": torch.randint(student.vocabulary, (_ROWS, length), generator=seeded).to(device)}


def _real(x: Tensor, context: Context) -> Tensor:
    """The real tokens (M, D) of x (B, L, D), in float64."""
    return (x.flatten(0, 1) if context.mask is None else x[context.mask]).double()


def _open_gate(student: HybridStudent, k: int, inputs: Sequence[Tensor], contexts: Sequence[Context]) -> None:
    layer, mixer = student.layer(k), student.layer(k).mamba
    assert isinstance(mixer, HybridMixer), "no layer of attention"
    normed = torch.cat([_real(layer.input_layernorm(x), c) for x, c in zip(inputs, contexts, strict=True)])
    square = normed.mT @ normed
    ridge = (
        _RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
    )
    row = torch.linalg.solve(square + ridge, normed.sum(dim=0))
    mixer.rows("z").copy_(OPEN_GATE * row)


def _scale_output(
    student: HybridStudent,
    k: int,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    contexts: Sequence[Context],
) -> None:
    """Let the norm's weight carry the factor of each head with which all together are nearest to attention's
    output. It may be negative: a scan without rotary positions may point the other way."""
    mixer: HybridMixer = student.layer(k).mamba
    heads, within = mixer.heads, Capture(mixers={k: frozenset(("values",))})
    square = torch.zeros(heads, heads, dtype=torch.float64, device=mixer.D.device)
    along = square.new_zeros(heads)
    columns = mixer.out_proj.weight.double().unflatten(1, (heads, -1))  # (D, H, P)
    for x, target, context in zip(inputs, wanted, contexts, strict=True):
        values = student.mixer(k, x, context, within)[1]["values"]
        # a row at a time, for there are as many streams as heads
        for row in range(len(x)):
            mask = None if context.mask is None else context.mask[row]
            real = slice(None) if mask is None else mask
            each = values[row, real].double().unflatten(-1, (heads, -1))
            made = torch.einsum("mhp,dhp->hmd", each, columns).flatten(1)
            square += made @ made.mT
            along += made @ target[row, real].double().flatten()
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
