"""What of a Mamba-2 layer's start the teacher's weights do not say: how far its gate is open, how large what
each head adds is and, where it is asked for, how long each head remembers; all by least squares on some text.
Of a layer with a window, how much what lies beyond it weighs (`far_start`).

in_proj has no bias, so the gate z is opened by rows along which the layer's inputs are nearly constant: w
with w h = 1 for every token h. Shapes: M tokens, D channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...core.batch import rows_of
from ...core.output import Context
from ...views.view import Walker
from .far_start import begin_far
from .layers import HybridLayer
from .least_squares import RIDGE, ridge
from .mixer import OPEN_GATE, HybridMixer, decay_log

if TYPE_CHECKING:
    from .model import HybridStudent

# the layers of which the teacher's weights do not say all
_STARTED = ("linear_attention", "window_mamba")
# a teacher's `walk`: inputs of batches through one sublayer after the other
Walk = Callable[[Sequence[Mapping[str, Tensor]], Walker], Iterator[tuple[str, int]]]

# of the words drawn where nobody gives a text
_ROWS, _WORDS = 8, 256
# tokens of which each head's output is made at once
_TOKENS = 128
# of the usual factor of a layer's heads
_LEAST = 0.1
# tokens: what a head's state may be halved in
HALF_LIVES = tuple(2.0**n for n in range(-1, 10))


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
    converted = student.sources(kinds).items()
    todo = {s: k for k, s in converted if k < layers and student.layer(k).kind in _STARTED}
    if not todo:
        return
    rows = [row for text in texts or [_drawn_words(student)] for row in _rows_of(text)]
    contexts, seen = [Context.of(row) for row in rows], dict[str, list[Tensor]]()
    every = torch.equal(kept.cpu(), torch.arange(len(kept)))  # or the first ones

    def observe(_: int, tower: str, s: int, name: str, tensor: Tensor) -> None:
        if tower != "decoder" or s not in todo:
            return
        if name in ("input", "output"):
            seen.setdefault(name, []).append(tensor[..., : len(kept)] if every else tensor[..., kept])
        elif name == "values" and student.fitted:
            seen.setdefault(name, []).append(tensor)

    for tower, s in walk(rows, observe):
        if tower == "decoder" and s in todo:
            layer, wanted = student.layer(todo.pop(s)), seen["output"]
            if layer.scans:
                norm, mixer = layer.input_layernorm, layer.mamba
                begin(norm, mixer, seen["input"], wanted, seen.get("values"), contexts)
            else:
                _begin_window(student, layer, seen["input"], wanted, contexts)
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
        yield rows_of(text, slice(row, row + 1))


def begin(
    its_norm: nn.Module,
    its_mixer: HybridMixer,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    values: Sequence[Tensor] | None,
    contexts: Sequence[Context],
) -> None:
    """One layer's gate and outputs, of streams `inputs` (1, L, D) to which attention adds what is `wanted`;
    with attention's `values` its half-lives and skips too. In half precision they are found by a copy in
    float32, then rounded."""
    norm, mixer = its_norm, its_mixer
    dtype = torch.promote_types(mixer.A_log.dtype, torch.float32)
    if dtype != mixer.A_log.dtype:
        norm, mixer = copy.deepcopy(norm).to(dtype), copy.deepcopy(mixer).to(dtype)

    def normed() -> Iterator[tuple[Tensor, Context]]:
        for x, context in zip(inputs, contexts, strict=True):
            yield norm(x.to(dtype)), context

    _open_gate(mixer, normed())
    if values is not None:
        _choose_half_lives(mixer, normed, values)
    _scale_output(mixer, normed(), wanted, skips=values is not None)
    if mixer is not its_mixer:
        its_mixer.rows("z").copy_(mixer.rows("z"))
        for name in ("norm.weight", "A_log", "D"):
            its_mixer.get_parameter(name).copy_(mixer.get_parameter(name))


def _begin_window(
    student: HybridStudent,
    layer: HybridLayer,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    contexts: Sequence[Context],
) -> None:
    """One layer's shares of far tokens, in half precision by a copy in float32."""
    norm, attention = layer.input_layernorm, layer.self_attn
    dtype = torch.promote_types(norm.weight.dtype, torch.float32)
    if dtype != norm.weight.dtype:
        norm, attention = copy.deepcopy(norm).to(dtype), copy.deepcopy(attention).to(dtype)
    rows = ((norm(x.to(dtype)), context) for x, context in zip(inputs, contexts, strict=True))
    begin_far(attention, student.rope_on(inputs[0].device), student.config.sinks, rows, wanted)
    for mine, found in zip(layer.self_attn.parameters(), attention.parameters(), strict=True):
        mine.copy_(found)


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
    square.diagonal().add_(RIDGE * square.diagonal().mean())
    mixer.rows("z").copy_(OPEN_GATE * torch.linalg.solve(square, along))


def _choose_half_lives(
    mixer: HybridMixer, normed: Callable[[], Iterable[tuple[Tensor, Context]]], wanted: Sequence[Tensor]
) -> None:
    """Let each head's state halve in those of `HALF_LIVES` with which its scan and its skip, scaled, are
    nearest to what the teacher's same head makes of the values, rows (1, L, H P) in `wanted`."""
    heads, size = wanted[0].shape[-1] // mixer.head_dim, mixer.head_dim
    usual, gains = mixer.A_log.clone(), []
    for half_life in HALF_LIVES:
        mixer.A_log.fill_(decay_log(half_life))
        products = torch.zeros(heads, 2, 3, dtype=torch.float64, device=usual.device)
        for (x, context), target in zip(normed(), wanted, strict=True):
            parts = [*_scan_and_skip(mixer, x, context), _real(target, context)]
            each = torch.stack([part.unflatten(-1, (-1, size))[:, :heads] for part in parts], dim=-1)
            products += torch.einsum("mhpa,mhpb->hab", each[..., :2], each)
        square, along = products[..., :2], products[..., 2]
        solved = torch.stack([ridge(*pair) for pair in zip(square, along, strict=True)])
        gains.append((solved * along).sum(dim=-1))
    choices = torch.tensor([decay_log(each) for each in HALF_LIVES], dtype=usual.dtype, device=usual.device)
    mixer.A_log.copy_(torch.cat([choices[torch.stack(gains).argmax(dim=0)], usual[heads:]]))


def _scan_and_skip(mixer: HybridMixer, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """What out_proj reads of the scan alone, and what a skip of `_unit` adds to that, of real tokens
    (M, H P)."""
    scan = _real(mixer(x, context).parts["values"], context)
    mixer.D.fill_(_unit(mixer))
    both = _real(mixer(x, context).parts["values"], context)
    mixer.D.zero_()
    return scan, both - scan


def _unit(mixer: HybridMixer) -> float:
    """A skip that adds about as much as a scan, in which the taps and SiLU make C and B small."""
    return (mixer.tap / 2) ** 2


def _scale_output(
    mixer: HybridMixer,
    normed: Iterable[tuple[Tensor, Context]],
    wanted: Sequence[Tensor],
    skips: bool = False,
) -> None:
    """Let the norm's weight carry the factor of each head with which all together are nearest to attention's
    output, and with `skips` D that of its skip. A factor may be negative: a scan without rotary positions may
    point the other way."""
    heads, kinds = mixer.heads, 2 if skips else 1
    square = torch.zeros(kinds * heads, kinds * heads, dtype=torch.float64, device=mixer.D.device)
    along = square.new_zeros(kinds * heads)
    columns = mixer.out_proj.weight.double().mT.unflatten(0, (heads, -1)).repeat(kinds, 1, 1)  # (2 H, P, D)
    for (x, context), target in zip(normed, wanted, strict=True):
        if skips:
            values = torch.cat(_scan_and_skip(mixer, x, context), dim=-1)
        else:
            values = _real(mixer(x, context).parts["values"], context)
        values = values.unflatten(-1, (kinds * heads, -1))
        pieces = zip(values.split(_TOKENS), _real(target, context).split(_TOKENS), strict=True)
        for each, goal in pieces:  # there are as many streams as heads
            made = (each.transpose(0, 1) @ columns).flatten(1)
            square += made @ made.mT
            along += made @ goal.flatten()
    solved = ridge(square, along)
    factors = _at_least(solved[:heads], square.diagonal()[:heads] > 0)
    mixer.norm.weight.copy_((mixer.norm.weight.unflatten(0, (heads, -1)) * factors[:, None]).flatten())
    if skips:
        mixer.D.copy_(_unit(mixer) * solved[heads:] / factors)


def _at_least(factors: Tensor, there: Tensor) -> Tensor:
    """The same, each of a size that a gradient passes: what adds nothing (a head whose columns are 0) has the
    others' usual one."""
    if not there.any():
        return torch.ones_like(factors)
    usual = factors[there].abs().median()
    signed = torch.where(factors < 0, -1.0, 1.0)
    return torch.where(there, signed * factors.abs().clamp_min(_LEAST * usual), usual)
