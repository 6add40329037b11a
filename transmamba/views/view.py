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

from ..core.output import Capture, Output, TokenLayout

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
