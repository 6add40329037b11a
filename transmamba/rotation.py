"""A teacher's residual stream in its principal axes, so that its first coordinates hold most of what is read.

A folded teacher's norms are bare RMSNorms, which an orthogonal rotation of the stream leaves as they are, so
that the stream may be written in any basis. In its principal axes a narrower student loses the directions of
least energy, where a choice among the teacher's own coordinates loses a part of every direction. That is
SliceGPT's rotation (Ashkboos et al., ICLR 2024, arXiv 2401.15024), which slices one Transformer; a single one
for all blocks, and a Mamba student that starts from what is kept, are this project's proposal.

Shapes: B images, L tokens, D channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from .canonical import Affine, Block, View
from .errors import UserError
from .outputs import Capture


@torch.no_grad()
def principal_axes(view: View, batches: Iterable[Tensor]) -> Tensor:
    """Orthogonal (D, D) in float64 on the CPU; column i is the axis of the i-th largest energy.

    `batches` yields images (B, C, H, W) as the teacher wants them. The energy is that of the stream wherever
    it is read, uncentred, each token of each block brought to length 1 as its norms do it: otherwise the
    late blocks, where the stream is longest, would own the axes. Raises UserError without images.
    """
    moment = torch.zeros(view.width, view.width, dtype=torch.float64)
    for images in batches:
        for stream in _streams_read(view, images):
            tokens = F.normalize(stream.double().flatten(0, 1), dim=-1)
            moment += (tokens.mT @ tokens).cpu()
    if not moment.any():
        raise UserError(
            "init.rotate needs calibration images; set init.calibration_images, or rotate to 'none'"
        )
    axes = torch.linalg.eigh(moment).eigenvectors.flip(1)  # eigh sorts upwards
    # an axis has no sign of its own: its largest component is made positive
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return axes * largest.sign()


def _streams_read(view: View, images: Tensor) -> list[Tensor]:
    """What each attention, each MLP and the final norm read, (B, L, D) each."""
    last = len(view.blocks) - 1
    output = view.run(images, Capture(hidden=frozenset({last}), mixers=frozenset(range(last + 1))))
    streams = [mixer[f"{name}_input"] for mixer in output.mixers.values() for name in ("attention", "mlp")]
    return [*streams, output.hidden[last]]


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
