"""Batches of pictures that lie in memory, all of one size: one gather a batch, and normalisation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from ...core.preprocessing import Preprocessing
from .augment import Augment, Moves

Pixels = npt.NDArray[np.uint8]


def can_index(array: Pixels | None, preprocessing: Preprocessing) -> bool:
    """Whether pictures (N, H, W, C) become model inputs without resizing or mixing of channels."""
    if array is None:
        return False
    _, height, width, channels = array.shape
    return preprocessing.keeps(height, width) and channels in (1, preprocessing.input_size[0])


def index_batch(array: Pixels, index: npt.NDArray[np.int64], preprocessing: Preprocessing) -> Tensor:
    """Pictures `index` of (N, H, W, C), normalised: (B, C, H, W) float32."""
    return normalise(array[index].transpose(0, 3, 1, 2), preprocessing)


def move_batch(
    array: Pixels,
    index: npt.NDArray[np.int64],
    moves: Moves,
    preprocessing: Preprocessing,
    augment: Augment,
) -> Tensor:
    """The same, cropped and mirrored."""
    picked, padding = array[index], augment.crop_padding
    count, height, width, channels = picked.shape
    moved = picked.transpose(0, 3, 1, 2)
    if padding:
        padded = np.zeros((count, height + 2 * padding, width + 2 * padding, channels), dtype=np.uint8)
        padded[:, padding:-padding, padding:-padding] = picked
        # Every crop there is, as a view (B, top, left, C, H, W), out of which the wanted ones are copied.
        windows = sliding_window_view(padded, (height, width), axis=(1, 2))
        moved = windows[np.arange(count), moves.top, moves.left]
    if augment.hflip:
        moved[moves.mirror] = moved[moves.mirror][..., ::-1]
    return normalise(moved, preprocessing)


def normalise(pixels: Pixels, preprocessing: Preprocessing) -> Tensor:
    """(B, C, H, W) uint8 -> (B, C, H, W) float32, in the very operations of ToTensor and Normalize.

    Pictures of one channel are repeated for a model of three.
    """
    images = torch.from_numpy(pixels).to(torch.float32, memory_format=torch.contiguous_format)
    if images.shape[1] != preprocessing.input_size[0]:
        images = images.repeat(1, preprocessing.input_size[0], 1, 1)
    mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    return images.div_(255).sub_(mean).div_(std)
