"""What is measured: operators and shapes, those of a GPU and those that a CPU can afford."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from . import block_cases, scan_cases, small_cases, ssd_cases, token_cases
from .case import Case

Build = Callable[[torch.device, torch.dtype, tuple[int, ...]], Case]

# By operator: how to build a case, the shapes on a GPU, the shapes on a CPU.
OPS: dict[str, tuple[Build, list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "selective_scan": (
        scan_cases.one_way,
        [
            (64, 768, 197, 16),
            (128, 384, 197, 16),
            (64, 384, 784, 16),
            (8, 1536, 2048, 16),
            (8, 4096, 2048, 16),
            (16, 768, 4096, 16),
            (1, 4096, 16384, 16),
            (1, 4096, 65536, 16),
        ],
        [(4, 384, 197, 16), (1, 768, 1024, 16)],
    ),
    "bidirectional_scan": (scan_cases.both_ways, [(64, 768, 197, 16)], [(2, 384, 197, 16)]),
    "vim_block": (block_cases.vim_block, [(64, 384, 197, 16)], [(2, 192, 197, 16)]),
    "ssd_scan": (
        ssd_cases.one_way,
        [(8, 2048, 32, 64, 128), (8, 2048, 64, 64, 128), (1, 16384, 64, 64, 128), (64, 256, 12, 64, 64)],
        [(2, 256, 12, 64, 64), (1, 1024, 12, 64, 64)],
    ),
    "bidirectional_ssd": (ssd_cases.both_ways, [(64, 197, 6, 64), (64, 785, 6, 64)], [(4, 197, 6, 64)]),
    "causal_conv1d": (small_cases.conv, [(64, 197, 768, 4), (8, 2048, 4096, 4)], [(8, 197, 768, 4)]),
    "bidirectional_conv1d": (small_cases.both_convs, [(64, 197, 768, 4)], [(8, 197, 768, 4)]),
    "selective_state_update": (
        small_cases.selective_update,
        [(64, 4096, 16), (64, 1536, 16)],
        [(8, 1536, 16)],
    ),
    "softmax_kl": (small_cases.divergence, [(2048, 49152), (2048, 128256)], [(64, 8192)]),
    "gated_product": (
        token_cases.product,
        [(8, 4096, 11008), (1, 4096, 11008), (16, 576, 1536)],
        [(8, 576, 1536)],
    ),
    "mamba2_step": (
        token_cases.mixer,
        [(8, 32, 128, 128, 32), (1, 32, 128, 128, 32), (64, 32, 64, 128, 1)],
        [(2, 8, 64, 64, 8)],
    ),
    "normed_gated_product": (
        token_cases.normed_product,
        [(8, 4096, 11008), (1, 4096, 11008), (16, 640, 1536)],
        [(8, 640, 1536)],
    ),
    "rms_norm": (token_cases.norm, [(8, 4096), (1, 4096)], [(8, 4096)]),
    "silu_mul": (token_cases.gate, [(8, 11008), (1, 11008)], [(8, 11008)]),
    "skinny_linear": (
        token_cases.linear,
        [(8, 4096, 4096), (8, 11008, 4096), (8, 4096, 16416), (1, 4096, 4096), (16, 576, 1536)],
        [(8, 576, 1536)],
    ),
    "ssd_state_update": (small_cases.ssd_update, [(64, 64, 64, 128), (64, 32, 64, 128)], [(4, 32, 64, 128)]),
}


def cases(
    device: torch.device, dtype: torch.dtype, ops: list[str], shapes: list[str], quick: bool
) -> Iterator[Case]:
    """Those of `ops` whose label has one of `shapes`, all where empty; quick: one shape an operator.

    Raises ValueError for an operator that is not here.
    """
    for op in ops:
        if op not in OPS:
            raise ValueError(f"ops: no operator {op!r}; write some of {', '.join(OPS)}")
    for op, (build, on_gpu, on_cpu) in OPS.items():
        if ops and op not in ops:
            continue
        wanted = on_gpu if device.type == "cuda" else on_cpu
        found = (build(device, dtype, shape) for shape in wanted)
        picked = [
            case
            for case in found
            if not shapes or any(s in (*case.label.split(), case.label) for s in shapes)
        ]
        yield from picked[:1] if quick else picked
