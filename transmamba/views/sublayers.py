"""The residual sublayers of a Transformer as named tensors: x + sublayer(x).

Shapes: B rows, L tokens, D channels, H heads, P channels a head, F hidden neurons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.output import Context, autocast_type
from .rope import Rope

# takes the name of an inner tensor and the tensor: `input`, `q`, `k`, `values`, `neurons`, `output`
Observer = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Affine:
    """y = x Wᵀ + b with weight (out, in) and bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """LayerNorm, or RMSNorm where `rms`, over the last dimension; weight and bias (D,) or None for none.

    weight_last: of an RMSNorm in half precision: whether it is rounded before the weight, too, as Llama's is
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    rms: bool = False
    weight_last: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.weight_last and self.weight is not None and x.element_size() < 4:
            return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.weight
        if self.rms and self.weight is not None and self.weight.dtype != x.dtype:
            # a wider weight (Gemma's 1 + w): rounded once, after the product
            return F.rms_norm(x.to(self.weight.dtype), x.shape[-1:], self.weight, self.eps).to(x.dtype)
        if self.rms:
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Attention:
    """scale * o(softmax(q kᵀ * softmax_scale) v), all of norm(x); q, k optionally normalised per head, then
    turned by their positions.

    kv_heads:      fewer heads of k and v, each shared by H / kv_heads heads of q; None for as many
    causal:        whether a token reads only itself and those before it
    scale:         LayerScale (D,)
    softmax_scale: None for 1 / sqrt(P)
    window:        how many tokens back a token reads, itself included; None for all
    """

    kind: ClassVar[str] = "attention"

    norm: Norm
    q: Affine
    k: Affine
    v: Affine
    o: Affine
    heads: int
    kv_heads: int | None = None
    causal: bool = False
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    scale: Tensor | None = None
    rope: Rope | None = None
    softmax_scale: float | None = None
    window: int | None = None

    @property
    def head_width(self) -> int:
        return self.q.weight.shape[0] // self.heads

    def __call__(self, x: Tensor, context: Context, observe: Observer) -> Tensor:
        """What attention adds to the stream x (B, L, D)."""
        normed = _rounded(self.norm(x))
        q = self.q(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (
            projection(normed).unflatten(-1, (self.kv_heads or self.heads, -1)).transpose(1, 2)
            for projection in (self.k, self.v)
        )
        q = self.q_norm(q) if self.q_norm else q
        k = self.k_norm(k) if self.k_norm else k
        if self.rope is not None:
            q, k = self.rope(q, context.positions), self.rope(k, context.positions)
        observe("q", q)
        observe("k", k)
        # layer norms run in float32 under autocast, so a normalised q or k may be wider than v
        q, k = q.to(v.dtype), k.to(v.dtype)
        allowed = readable(context, self.causal, self.window, x)
        mixed = attend(q, k, v, allowed, causal=self.causal, scale=self.softmax_scale)
        mixed = mixed.transpose(1, 2).flatten(2)
        observe("values", mixed)
        return scaled(self.o(mixed), self.scale)


def _rounded(x: Tensor) -> Tensor:
    """Under autocast in its type, as each product behind would make of x by itself."""
    rounded = autocast_type(x.device.type)
    return x if rounded is None or x.dtype != torch.float32 else x.to(rounded)


def attend(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool = True, scale: float | None = None
) -> Tensor:
    """Softmax attention (B, H, L, P) of q (B, H, L, P) over k and v, of as many heads or fewer.

    allowed: (B, 1, L, L) bool, as `readable` says it, or what it adds to the logits, in v's type; None where
        `causal` alone does
    scale:   None for 1 / sqrt(P)
    """
    shared = q.shape[1] // k.shape[1]
    if allowed is not None and shared > 1:
        # no fast kernel has both a mask and shared heads: the slow one would write all of softmax down
        k, v, shared = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1), 1
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=allowed,
        is_causal=causal and allowed is None,
        scale=scale,
        enable_gqa=shared > 1,
    )


def readable(context: Context, causal: bool, window: int | None, x: Tensor) -> Tensor | None:
    """(B, 1, L, L) bool, whether token i may read token j; None where nothing but causality says so.

    A padded token reads itself, so that its softmax is over something.
    """
    asked = causal, window, x.shape[1], x.device
    if context.mask is not None or context.segments is not None:
        return context.once(("readable", *asked), lambda: _readable(context, *asked))
    return None if window is None or window >= x.shape[1] else _readable(context, *asked)


def _readable(
    context: Context, causal: bool, window: int | None, length: int, device: torch.device
) -> Tensor:
    allowed = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    if causal:
        allowed = allowed.tril()
    if window is not None:
        allowed = allowed.triu(1 - window)
    if context.segments is not None:
        allowed = allowed & (context.segments[:, None, :, None] == context.segments[:, None, None, :])
    if context.mask is not None:
        allowed = allowed & context.mask[:, None, None, :]
    return allowed | torch.eye(length, dtype=torch.bool, device=device)


@dataclass(frozen=True)
class Mlp:
    """scale * down(act(up(norm(x)))), or with a gate scale * down(act(gate(norm(x))) * up(norm(x)))
    (arXiv 2002.05202)."""

    kind: ClassVar[str] = "mlp"

    norm: Norm
    up: Affine
    down: Affine
    act: Callable[[Tensor], Tensor]
    scale: Tensor | None = None
    gate: Affine | None = None

    def __call__(self, x: Tensor, context: Context, observe: Observer) -> Tensor:
        """What the MLP adds to the stream x (B, L, D)."""
        normed = _rounded(self.norm(x))
        up = self.up(normed)
        hidden = self.act(up) if self.gate is None else self.act(self.gate(normed)) * up
        observe("neurons", hidden)
        return scaled(self.down(hidden), self.scale)


Sublayer = Attention | Mlp


def read_and_write(sublayer: Sublayer) -> tuple[Affine, Affine]:
    """The linears between the stream and the channels that a sublayer writes from: V and O, or up and
    down."""
    if isinstance(sublayer, Attention):
        return sublayer.v, sublayer.o
    return sublayer.up, sublayer.down


def scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


def named_tensors(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each tensor in a view, or part of one, with its place: `towers.decoder.sublayers.3.q.weight`."""
    if isinstance(value, Tensor):
        yield place, value
        return
    inside: Any = ()
    if isinstance(value, tuple):
        inside = enumerate(value)
    elif isinstance(value, dict):
        inside = value.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    for name, each in inside:
        yield from named_tensors(each, f"{place}.{name}" if place else str(name))


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same view, or part of one, with `function` applied to each tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(item, function) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changes = {f.name: map_tensors(getattr(value, f.name), function) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **changes)
