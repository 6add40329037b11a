"""What of a Mamba-2 layer's start the teacher's weights do not say: how far its gate is open, how large what
each head adds is and, where it is asked for, how long each head remembers; all by least squares on some text.

in_proj has no bias, so the gate z is opened by rows along which the layer's inputs are nearly constant: w
with w h = 1 for every token h. Shapes: M tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.output import Capture, Captures, Context, Output
from .mixer import OPEN_GATE, HybridMixer, decay_log

if TYPE_CHECKING:
    from .model import HybridStudent

Teacher = Callable[[Mapping[str, Tensor], Captures], Output]

# of the words drawn where nobody gives a text
_ROWS, _WORDS = 8, 256
# in units of the mean square of a channel, or of a head
_RIDGE = 1e-3
# of the usual factor of a layer's heads
_LEAST = 0.1
# tokens: what a head's state may be halved in
HALF_LIVES = tuple(2.0**n for n in range(-1, 10))


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
    sources = {k: s for k, s in student.sources(kinds).items() if k < layers}
    if not sources:
        return
    texts = texts or [_drawn_words(student)]
    capture = Capture(mixers=dict.fromkeys(sources.values(), frozenset(("input", "output", "values"))))
    taught = [teacher(inputs, {"decoder": capture}).streams["decoder"].mixers for inputs in texts]
    contexts = [Context.of(inputs) for inputs in texts]
    dtype = student.lm_head.weight.dtype
    for k, s in sources.items():
        inputs = [mixers[s]["input"].to(dtype) for mixers in taught]
        wanted = [mixers[s]["output"].to(dtype) for mixers in taught]
        _open_gate(student, k, inputs, contexts)
        if student.fitted:
            values = [mixers[s]["values"].to(dtype) for mixers in taught]
            _choose_half_lives(student, k, inputs, values, contexts)
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


def _choose_half_lives(
    student: HybridStudent,
    k: int,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    contexts: Sequence[Context],
) -> None:
    """Let each head's state halve in those of `HALF_LIVES` with which its scan and its skip, scaled, are
    nearest to what the teacher's same head makes of the values, (B, L, H P) in `wanted`."""
    mixer: HybridMixer = student.layer(k).mamba
    heads = wanted[0].shape[-1] // mixer.head_dim
    usual, gains = mixer.A_log.clone(), []
    for half_life in HALF_LIVES:
        mixer.A_log.fill_(decay_log(half_life))
        products = torch.zeros(heads, 2, 3, dtype=torch.float64, device=usual.device)
        for x, target, context in zip(inputs, wanted, contexts, strict=True):
            parts = [_real(part, context) for part in (*_scan_and_skip(student, k, x, context), target)]
            each = torch.stack([p.unflatten(-1, (-1, mixer.head_dim))[:, :heads] for p in parts], dim=-1)
            products += torch.einsum("mhpa,mhpb->hab", each[..., :2], each)
        square, along = products[..., :2], products[..., 2]
        solved = torch.stack([_ridge(*pair) for pair in zip(square, along, strict=True)])
        gains.append((solved * along).sum(dim=-1))
    choices = torch.tensor([decay_log(each) for each in HALF_LIVES], dtype=usual.dtype, device=usual.device)
    mixer.A_log.copy_(torch.cat([choices[torch.stack(gains).argmax(dim=0)], usual[heads:]]))


def _scan_and_skip(student: HybridStudent, k: int, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """What out_proj reads of the scan alone, and what a skip of `_unit` adds to that; each (B, L, H P)."""
    mixer: HybridMixer = student.layer(k).mamba
    within = Capture(mixers={k: frozenset(("values",))})
    scan = student.mixer(k, x, context, within)[1]["values"]
    mixer.D.fill_(_unit(mixer))
    both = student.mixer(k, x, context, within)[1]["values"]
    mixer.D.zero_()
    return scan, both - scan


def _unit(mixer: HybridMixer) -> float:
    """A skip that adds about as much as a scan, in which the taps and SiLU make C and B small."""
    return (mixer.tap / 2) ** 2


def _scale_output(
    student: HybridStudent,
    k: int,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    contexts: Sequence[Context],
) -> None:
    """Let the norm's weight carry the factor of each head with which all together are nearest to attention's
    output, and where starts are fitted D that of its skip. A factor may be negative: a scan without rotary
    positions may point the other way."""
    mixer: HybridMixer = student.layer(k).mamba
    heads, kinds = mixer.heads, 2 if student.fitted else 1
    square = torch.zeros(kinds * heads, kinds * heads, dtype=torch.float64, device=mixer.D.device)
    along = square.new_zeros(kinds * heads)
    columns = mixer.out_proj.weight.double().unflatten(1, (heads, -1))  # (D, H, P)
    for x, target, context in zip(inputs, wanted, contexts, strict=True):
        parts = _scan_and_skip(student, k, x, context)[:kinds]
        # a row at a time, for there are as many streams as heads
        for row in range(len(x)):
            real = slice(None) if context.mask is None else context.mask[row]
            each = torch.stack([part[row, real].double().unflatten(-1, (heads, -1)) for part in parts])
            made = torch.einsum("kmhp,dhp->khmd", each, columns).flatten(0, 1).flatten(1)
            square += made @ made.mT
            along += made @ target[row, real].double().flatten()
    solved = _ridge(square, along)
    factors = _at_least(solved[:heads], square.diagonal()[:heads] > 0)
    mixer.norm.weight.copy_((mixer.norm.weight.unflatten(0, (heads, -1)) * factors[:, None]).flatten())
    if student.fitted:
        mixer.D.copy_(_unit(mixer) * solved[heads:] / factors)


def _ridge(square: Tensor, along: Tensor) -> Tensor:
    """The factors (H,) with which things of Gram matrix `square` add up to something, `along` it; 0 of what
    is nothing."""
    size = square.diagonal()
    scale = torch.where(size > 0, size, torch.inf).rsqrt()
    ridge = _RIDGE * torch.eye(len(size), dtype=size.dtype, device=size.device)
    return torch.linalg.solve(square * scale[:, None] * scale + ridge, along * scale) * scale


def _at_least(factors: Tensor, there: Tensor) -> Tensor:
    """The same, each of a size that a gradient passes: what adds nothing (a head whose columns are 0) has the
    others' usual one."""
    if not there.any():
        return torch.ones_like(factors)
    usual = factors[there].abs().median()
    signed = torch.where(factors < 0, -1.0, 1.0)
    return torch.where(there, signed * factors.abs().clamp_min(_LEAST * usual), usual)
