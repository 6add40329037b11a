"""The canonical view: any supported Transformer as named tensors, in one form that can be run.

A teacher file translates its checkpoint into a `View`; a student file says which tensors of a view it takes
(`subclone.py`). So N teachers and M students need N + M files. The view is executable: `View.run` is the only
teacher forward in the project, and for every registered teacher a test holds its logits and each residual
stream against the teacher's own code.

Shapes: B images, L tokens, D channels, H heads, P channels a head, F hidden neurons, K classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .outputs import Capture, Output, TokenLayout

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
    """LayerNorm, or RMSNorm where `rms`, over the last dimension; weight and bias (D,) or None for none."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    rms: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.rms:
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Attention:
    """x + scale * o(softmax(q kᵀ / sqrt(P)) v), all of norm(x); q, k optionally normalised per head."""

    norm: Norm
    q: Affine
    k: Affine
    v: Affine
    o: Affine
    heads: int
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    scale: Tensor | None = None  # LayerScale (D,)


@dataclass(frozen=True)
class Mlp:
    """x + scale * down(act(up(norm(x))))."""

    norm: Norm
    up: Affine
    down: Affine
    act: Callable[[Tensor], Tensor]
    scale: Tensor | None = None


@dataclass(frozen=True)
class ImageEmbedding:
    """Convolution over patches, special tokens, positions.

    special (S, D) in sequence order before the patches; position (S + N, D), zero where a token has none.
    """

    weight: Tensor  # (D, C, patch, patch)
    bias: Tensor | None
    special: Tensor
    position: Tensor
    norm: Norm | None = None

    def __call__(self, images: Tensor) -> Tensor:
        patches = F.conv2d(images, self.weight, self.bias, stride=self.weight.shape[-2:])
        tokens = patches.flatten(2).transpose(1, 2)
        special = self.special.expand(len(images), -1, -1).to(tokens.dtype)
        tokens = torch.cat([special, tokens], dim=1) + self.position
        return tokens if self.norm is None else self.norm(tokens)


@dataclass(frozen=True)
class Block:
    attention: Attention
    mlp: Mlp


@dataclass(frozen=True)
class View:
    """A whole classifier. `heads` maps a pooled token (a name in the layout, or 'mean' of the patches) to
    logits; several heads are averaged (DeiT's distilled pair)."""

    embedding: ImageEmbedding
    blocks: tuple[Block, ...]
    norm: Norm | None
    heads: tuple[tuple[str, Affine], ...]
    layout: TokenLayout
    norm_after_pooling: bool = False

    @property
    def width(self) -> int:
        return self.embedding.weight.shape[0]

    @property
    def num_classes(self) -> int:
        return self.heads[0][1].weight.shape[0]

    def run(self, images: Tensor, capture: Capture | None = None, observe: Observer | None = None) -> Output:
        """Logits (B, K) of images (B, C, H, W), with what `capture` names.

        `observe(name, tensor)` is called with `residual.{k}` (stream after block k), `value.{k}` (input of
        the attention's output projection) and `neuron.{k}` (hidden activations of the MLP), for importance
        scores.
        """
        capture = capture or Capture()
        output = Output(logits=None, layout=self.layout)
        x = self.embedding(images)
        for k, block in enumerate(self.blocks):
            mixers: dict[str, Tensor] = {"attention_input": x}
            attended = self._attend(
                block.attention,
                x,
                mixers,
                functools.partial(observe, f"value.{k}") if observe else _ignore,
                capture.ranks if k in capture.mixers else None,
            )
            x = x + attended
            mixers |= {"attention_output": attended, "mlp_input": x}
            hidden = block.mlp.act(block.mlp.up(block.mlp.norm(x)))
            if observe:
                observe(f"neuron.{k}", hidden)
            mlp = _scaled(block.mlp.down(hidden), block.mlp.scale)
            x = x + mlp
            mixers["mlp_output"] = mlp
            if observe:
                observe(f"residual.{k}", x)
            if k in capture.hidden:
                output.hidden[k] = x
            if k in capture.mixers:
                output.mixers[k] = mixers
        output.logits = self.classify(x)
        return output

    def _attend(
        self,
        attention: Attention,
        x: Tensor,
        mixers: dict[str, Tensor],
        observe: Callable[[Tensor], Any],
        ranks: Tensor | None,
    ) -> Tensor:
        normed = attention.norm(x)
        q, k, v = (
            projection(normed).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for projection in (attention.q, attention.k, attention.v)
        )
        q = attention.q_norm(q) if attention.q_norm else q
        k = attention.k_norm(k) if attention.k_norm else k
        mixers |= {"q": q, "k": k}
        # layer norms run in float32 under autocast, so a normalised q or k may be wider than v
        q, k = q.to(v.dtype), k.to(v.dtype)
        if ranks is not None:
            mixers["attention_back"] = _back(attention, q, k, v, ranks)
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed.transpose(1, 2).flatten(2)
        observe(mixed)
        return _scaled(attention.o(mixed), attention.scale)

    def classify(self, x: Tensor) -> Tensor:
        """Logits of the last residual stream (B, L, D)."""
        norm = self.norm or (lambda tokens: tokens)
        x = x if self.norm_after_pooling else norm(x)
        position = dict(self.layout.special)
        logits = []
        for token, head in self.heads:
            pooled = x[:, self.layout.patches].mean(dim=1) if token == "mean" else x[:, position[token]]
            logits.append(head(norm(pooled) if self.norm_after_pooling else pooled))
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(dim=0)


def _ignore(_: Tensor) -> None:
    pass


def _back(attention: Attention, q: Tensor, k: Tensor, v: Tensor, ranks: Tensor) -> Tensor:
    """tril(A) V through the output projection with half its bias, (B, H, L, P) -> (B, L, D), the tokens in
    the order of `ranks` (L,). What is missing to attention's output is triu(A, 1) V and the other half."""
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    seen = ranks[None, :] <= ranks[:, None]
    mixed = ((weights * seen) @ v).transpose(1, 2).flatten(2)
    bias = None if attention.o.bias is None else attention.o.bias / 2
    return _scaled(Affine(attention.o.weight, bias)(mixed), attention.scale)


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same view with `function` applied to each tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(item, function) for item in value)
    if isinstance(value, TokenLayout) or not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changes = {f.name: map_tensors(getattr(value, f.name), function) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **changes)


def fold(view: View) -> View:
    """The same function with plain RMSNorms: LayerScale goes into the projections, every write to the
    residual stream is centred, and each LayerNorm's weight and bias go into the linear that reads it.

    A LayerNorm of a centred vector is an RMSNorm of it, so nothing is lost. Raises UserError for a view that
    already has an RMSNorm or a head without a norm (its stream need not be centred), or a norm right after
    the embedding.
    """
    norms = [view.norm, *(norm for b in view.blocks for norm in (b.attention.norm, b.mlp.norm))]
    if any(norm is None or norm.rms for norm in norms) or view.embedding.norm is not None:
        raise UserError(
            "this teacher cannot be folded: every block and its end need a LayerNorm, its embedding none; "
            "set fold to false"
        )
    assert view.norm is not None, "checked above"
    embedding = dataclasses.replace(
        view.embedding,
        weight=view.embedding.weight - view.embedding.weight.mean(dim=0, keepdim=True),
        bias=None if view.embedding.bias is None else view.embedding.bias - view.embedding.bias.mean(),
        special=view.embedding.special - view.embedding.special.mean(dim=-1, keepdim=True),
        position=view.embedding.position - view.embedding.position.mean(dim=-1, keepdim=True),
    )
    blocks = []
    for block in view.blocks:
        a, m = block.attention, block.mlp
        attention = dataclasses.replace(
            a,
            norm=_bare(a.norm),
            q=_absorb(a.q, a.norm),
            k=_absorb(a.k, a.norm),
            v=_absorb(a.v, a.norm),
            o=_centred(a.o, a.scale),
            scale=None,
        )
        mlp = dataclasses.replace(
            m, norm=_bare(m.norm), up=_absorb(m.up, m.norm), down=_centred(m.down, m.scale), scale=None
        )
        blocks.append(Block(attention, mlp))
    heads = tuple((token, _absorb(head, view.norm)) for token, head in view.heads)
    return dataclasses.replace(
        view, embedding=embedding, blocks=tuple(blocks), norm=_bare(view.norm), heads=heads
    )


def rotate(view: View, axes: Tensor) -> View:
    """The same function with its residual stream x turned into x Q, for an orthogonal Q = `axes` (D, D): what
    writes into the stream is multiplied by Q, what reads it by Q too (y = x Wᵀ = (x Q) (W Q)ᵀ).

    An RMSNorm without a weight only divides by the stream's length, which a rotation keeps. Raises UserError
    for a view with any other norm: fold it first.
    """
    norms = [view.norm, *(norm for b in view.blocks for norm in (b.attention.norm, b.mlp.norm))]
    scales = [scale for b in view.blocks for scale in (b.attention.scale, b.mlp.scale)]
    bare = all(norm is not None and norm.rms and norm.weight is None for norm in norms)
    if not bare or view.embedding.norm is not None or any(scale is not None for scale in scales):
        raise UserError("only a folded teacher can be rotated: its norms must be bare; set fold to true")
    embedding = dataclasses.replace(
        view.embedding,
        weight=_turned(view.embedding.weight.movedim(0, -1), axes).movedim(-1, 0).contiguous(),
        bias=None if view.embedding.bias is None else _turned(view.embedding.bias, axes),
        special=_turned(view.embedding.special, axes),
        position=_turned(view.embedding.position, axes),
    )
    blocks = tuple(
        Block(
            dataclasses.replace(
                b.attention,
                q=_reading(b.attention.q, axes),
                k=_reading(b.attention.k, axes),
                v=_reading(b.attention.v, axes),
                o=_writing(b.attention.o, axes),
            ),
            dataclasses.replace(b.mlp, up=_reading(b.mlp.up, axes), down=_writing(b.mlp.down, axes)),
        )
        for b in view.blocks
    )
    heads = tuple((token, _reading(head, axes)) for token, head in view.heads)
    return dataclasses.replace(view, embedding=embedding, blocks=blocks, heads=heads)


def _turned(x: Tensor, axes: Tensor) -> Tensor:
    """x Q over the last dimension, in Q's precision and returned in x's."""
    axes = axes.to(x.device)
    return (x.to(axes.dtype) @ axes).to(x.dtype)


def _reading(linear: Affine, axes: Tensor) -> Affine:
    return Affine(_turned(linear.weight, axes), linear.bias)


def _writing(linear: Affine, axes: Tensor) -> Affine:
    bias = None if linear.bias is None else _turned(linear.bias, axes)
    return Affine(_turned(linear.weight.mT, axes).mT.contiguous(), bias)


def _bare(norm: Norm) -> Norm:
    return Norm(weight=None, bias=None, eps=norm.eps, rms=True)


def _absorb(linear: Affine, norm: Norm) -> Affine:
    weight = linear.weight if norm.weight is None else linear.weight * norm.weight
    bias = linear.bias
    if norm.bias is not None:
        shift = linear.weight @ norm.bias
        bias = shift if bias is None else bias + shift
    return Affine(weight, bias)


def _centred(linear: Affine, scale: Tensor | None) -> Affine:
    weight, bias = linear.weight, linear.bias
    if scale is not None:
        weight = weight * scale[:, None]
        bias = None if bias is None else bias * scale
    weight = weight - weight.mean(dim=0, keepdim=True)
    return Affine(weight, None if bias is None else bias - bias.mean())
