"""Frames of videos through an image tower: each by itself, then the mean of their embeddings, or all at once.

The mean is the parameter-free `meanP` of CLIP4Clip (Luo et al., arXiv 2104.08860, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .batch import Batch
from .output import Captures, Output


def embed_frames(
    inputs: Mapping[str, Tensor],
    captures: Captures,
    run: Callable[[Mapping[str, Tensor]], Output],
    scan: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """(B, E) of length 1: the mean over a video's real frames of their embeddings of length 1, or what `scan`
    makes of all of them.

    inputs: `frames` (B, T, C, H, W), and `frames_mask` (B, T) bool, True where a frame is real; without it
        all are. What is in the others does not matter, as long as it is finite
    run:    the model's own forward pass of `image` (N, C, H, W), which gives the embeddings of `image`
    scan:   the model's embeddings (B, E) of videos (B, T, C, H, W), where it reads them as a whole; of a
        video with fewer frames each is held for its share of the time
    Raises UserError where a loss reads the image tower's tokens, which videos have none of, where there are
    pictures beside the videos, and for a model that embeds no pictures.
    """
    capture = captures.get("image")
    if capture is not None and (capture.hidden or capture.branches or capture.mixers):
        raise UserError(
            "a loss reads the image tower's tokens, which are kept of pictures alone, not of a video's "
            "frames; write losses over embeddings (embedding_cosine, contrastive, affinity), or train the "
            "tower on pictures"
        )
    if "image" in inputs:
        raise UserError("the batch has both image and frames, which one tower reads; give one of them")
    frames = inputs["frames"]
    if scan is not None:
        mask = inputs.get("frames_mask")
        return F.normalize(scan(frames if mask is None else held(frames, mask)), dim=-1)
    made = run({"image": frames.flatten(0, 1)}).embeddings
    if "image" not in made:
        raise UserError("videos are embedded frame by frame; this model embeds no pictures: choose a CLIP")
    each = F.normalize(made["image"], dim=-1).unflatten(0, frames.shape[:2])
    if "frames_mask" in inputs:
        each = torch.where(inputs["frames_mask"][..., None], each, 0.0)
    # of length 1 afterwards, so the sum will do for the mean
    return F.normalize(each.sum(dim=1), dim=-1)


def held(frames: Tensor, mask: Tensor) -> Tensor:
    """The real frames of each video, each held until the next, at T times that share it out evenly.

    frames (B, T, C, H, W); mask (B, T) bool, True where a frame is real, of each video at least once
    """
    times = torch.arange(frames.shape[1], device=mask.device)
    shown = (2 * times + 1) * mask.sum(dim=1, keepdim=True) // (2 * len(times))  # (B, T), of the real ones
    real = torch.argsort(~mask, dim=1, stable=True)
    return frames[torch.arange(len(frames), device=mask.device)[:, None], real.gather(1, shown)]


def as_images(batch: Batch) -> Batch:
    """The real frames of a batch of videos as a batch of images, without captions; each has its video's
    number."""
    frames, index = batch.inputs["frames"], batch.index
    mask = batch.inputs.get("frames_mask", torch.ones(frames.shape[:2], dtype=torch.bool))
    images = frames[mask]
    return Batch({"image": images}, {}, index.repeat_interleave(mask.sum(dim=1)), {"samples": len(images)})
