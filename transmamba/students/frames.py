"""All frames of a video as one sequence: what the image towers that scan them share.

Each frame is embedded as a picture is, with its own class token and the picture's positions; one learned
vector a frame says when it was (VideoMamba's temporal positions, Li et al., arXiv 2403.06977, section 3.2),
and the frames' tokens follow one another (spatial first, the order that did best there). What the head reads
of a picture it reads of every frame, as a mean. VideoMamba has one class token for all; with one a frame each
frame looks as a picture does to the picture's weights, which so inflate. Shapes: B videos, T frames, L tokens
of a frame, D channels.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adaptable import Adaptable
from .sizes import check_sizes

logger = logging.getLogger("transmamba.students")


class ScansFrames(Adaptable):
    """An image tower that also reads videos (B, T, C, H, W). A picture (B, C, H, W) is a video of one frame.

    num_frames: for how many it was made; 1 for pictures alone. Other numbers of frames have its temporal
        positions resampled.
    temporal_pos_embedding: (1, num_frames, D), 0 at the start; None for pictures alone
    """

    num_frames: int
    embed_dim: int
    temporal_pos_embedding: nn.Parameter | None

    def make_times(self, num_frames: int) -> None:
        """Raises ValueError for what is no number of frames."""
        check_sizes(1, 1, None, num_frames=num_frames)
        self.num_frames = num_frames
        self.temporal_pos_embedding = (
            nn.Parameter(torch.zeros(1, num_frames, self.embed_dim)) if num_frames > 1 else None
        )

    def set_num_frames(self, num_frames: int) -> None:
        """Read videos of so many frames from now on: temporal positions of 0 for a tower of pictures, which
        then makes of one frame what it made of the picture; else resampled. Raises as `make_times`."""
        old, weight = self.temporal_pos_embedding, next(iter(self._own().parameters()))
        self.make_times(num_frames)
        new = self.temporal_pos_embedding
        if new is not None:
            made = torch.zeros_like(new) if old is None else resampled(old.detach(), num_frames)
            kept = made.to(weight.device, weight.dtype)
            self.temporal_pos_embedding = nn.Parameter(kept, requires_grad=weight.requires_grad)
        self._note(num_frames)

    def _own(self) -> nn.Module:
        assert isinstance(self, nn.Module), "of an image tower"
        return self

    def _note(self, num_frames: int) -> None:
        """Keep what rebuilds the model in step with it: our record, and timm's own where it keeps one."""
        built: Any = self
        built.transmamba_args = {**(getattr(built, "transmamba_args", None) or {}), "num_frames": num_frames}
        if getattr(built, "_model_args", None):
            built._model_args = {**built._model_args, "num_frames": num_frames}

    def pictures(self, x: Tensor) -> tuple[Tensor, int]:
        """Frames one after another (B * T, C, H, W), and T, of pictures or videos. Raises ValueError for
        videos where pictures alone are read."""
        if x.ndim == 4:
            return x, 1
        if x.ndim != 5 or self.temporal_pos_embedding is None:
            raise ValueError(
                f"an input {tuple(x.shape)}: this tower takes pictures (B, C, H, W); for videos "
                "(B, T, C, H, W) call set_num_frames first"
            )
        return x.flatten(0, 1), x.shape[1]

    def timed(self, tokens: Tensor, times: int) -> Tensor:
        """tokens (B * T, L, D) with the temporal position of their frame."""
        if self.temporal_pos_embedding is None:
            return tokens
        if times not in (1, self.num_frames):
            _say_resampled(self.num_frames, times)
        when = resampled(self.temporal_pos_embedding, times).squeeze(0)
        return (tokens.unflatten(0, (-1, times)) + when[:, None]).flatten(0, 1)


@functools.cache
def _say_resampled(made: int, given: int) -> None:
    logger.warning(
        "videos of %d frames go to a tower made for %d: its temporal positions are interpolated", given, made
    )


def joined(tokens: Tensor, times: int) -> Tensor:
    """(B, T * L, D) of (B * T, L, D)."""
    return tokens if times == 1 else tokens.unflatten(0, (-1, times)).flatten(1, 2)


def only_pictures(x: Tensor) -> None:
    """Raises ValueError for videos, whose maps of patches timm's interface has no shape for."""
    if x.ndim == 5:
        raise ValueError(
            f"an input {tuple(x.shape)}: maps are made of pictures (B, C, H, W); give the frames of videos "
            "one by one, or call the model itself"
        )


def mean_frame(tokens: Tensor, length: int) -> Tensor:
    """(B, L, D), the mean over frames, of (B, T * L, D); `length` is L."""
    return tokens if tokens.shape[1] == length else tokens.unflatten(1, (-1, length)).mean(dim=1)


def resampled(positions: Tensor, count: int) -> Tensor:
    """Temporal positions (1, F, D) of `count` frames that share the same video out, (1, count, D): linear
    between the middles of its F parts."""
    if positions.shape[1] == count:
        return positions
    made = F.interpolate(positions.float().transpose(1, 2), count, mode="linear", align_corners=False)
    return made.transpose(1, 2).to(positions.dtype)
