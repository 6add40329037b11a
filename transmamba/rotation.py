"""The principal axes of a teacher's residual stream, so that its first coordinates hold most of what is read.

A folded teacher's norms are bare RMSNorms, which an orthogonal rotation of the stream leaves as they are, so
that the stream may be written in any basis. In its principal axes a narrower student loses the directions of
least energy, where a choice among the teacher's own coordinates loses a part of every direction. That is
SliceGPT's rotation (Ashkboos et al., ICLR 2024, arXiv 2401.15024), which slices one Transformer; a single one
for all blocks, and a Mamba student that starts from what is kept, are this project's proposal.

Shapes: B images, L tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from .canonical import View
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
