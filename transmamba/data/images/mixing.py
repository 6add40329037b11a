"""Mixing images pairwise within a batch: mixup and CutMix, in the numbers of torchvision's transforms.

Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018; Yun et al., "CutMix: Regularization
strategy to train strong classifiers with localizable features", ICCV 2019.

torchvision's `v2.RandomChoice([v2.MixUp(...), v2.CutMix(...)])` draws from the global generator, which other
threads use as well; here the same numbers, in the same order, come from a generator of one's own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mix(
    images: Tensor, classes: Tensor, *, num_classes: int, mixup: float, cutmix: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Each image with the one before it: images (B, C, H, W) and shares of classes (B, K), K = num_classes.

    classes:       (B,) numbers or (B, K) shares
    mixup, cutmix: alpha of the Beta(alpha, alpha) that the share is drawn from, 0 for never; if both, one of
                   them by chance
    The numbers drawn follow from `seed` on any device; nothing is changed in place.
    """
    generator = torch.Generator().manual_seed(seed)
    ways = [(alpha, cut) for alpha, cut in ((mixup, False), (cutmix, True)) if alpha]
    way = int(torch.multinomial(torch.full((len(ways),), 1 / len(ways)), 1, generator=generator))
    alpha, cut = ways[way]
    # What Beta(alpha, alpha).sample() calls, which takes no generator.
    share = float(torch._sample_dirichlet(torch.full((1, 2), alpha), generator=generator)[0, 0])
    if classes.ndim == 1:
        classes = F.one_hot(classes, num_classes).float()
    if not cut:
        return _blend(images, share), _blend(classes, share)
    height, width = images.shape[-2:]
    left, top, right, bottom = _box(height, width, share, generator)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
    kept = float(1.0 - (right - left) * (bottom - top) / (width * height))
    return mixed, _blend(classes, kept)


def _blend(values: Tensor, share: float) -> Tensor:
    """`share` of each row and the rest of the one before it."""
    return values.roll(1, 0).mul_(1.0 - share).add_(values.mul(share))


def _box(height: int, width: int, share: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom): a rectangle of 1 - share of the area, less what lies outside."""
    x = int(torch.randint(width, size=(1,), generator=generator))
    y = int(torch.randint(height, size=(1,), generator=generator))
    half = 0.5 * math.sqrt(1.0 - share)
    wide, tall = int(half * width), int(half * height)
    return max(x - wide, 0), max(y - tall, 0), min(x + wide, width), min(y + tall, height)
