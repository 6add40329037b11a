"""The kernels of one token: mixers whose heads have B and C of their own, and share them."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transmamba_kernels.causal_conv1d import gpu as convolution
from transmamba_kernels.gated_product import gpu as product
from transmamba_kernels.mamba2_step import gpu as mamba2
from transmamba_kernels.rms_norm import gpu as norm
from transmamba_kernels.silu_mul import gpu as mlp
from transmamba_kernels.skinny_linear import gpu as skinny
from transmamba_kernels.ssd_state_update import gpu as scan

from .case import Case, case


class Recorded:
    """In a kernel's place: what it would be launched with."""

    def __init__(self, kernel: Any, found: list[Case]) -> None:
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(
            *arguments: Any, num_warps: int, enable_fp_fusion: bool, num_stages: int = 3, **rest: Any
        ) -> None:
            values = dict(zip(self.kernel.arg_names, arguments, strict=False)) | rest
            self.found.append(case(self.kernel, values, num_warps, num_stages))

        return launch


def empty(*shape: int, of: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=of, device="meta")


def mixers() -> list[Case]:
    found: list[Case] = []
    single = torch.float32
    with (
        mock.patch.object(scan, "step_kernel", Recorded(scan.step_kernel, found)),
        mock.patch.object(convolution, "update_kernel", Recorded(convolution.update_kernel, found)),
        mock.patch.object(norm, "norm_kernel", Recorded(norm.norm_kernel, found)),
    ):
        for heads, width, states, groups, group, dtype in (
            (32, 128, 128, 32, 128, torch.bfloat16),
            (32, 128, 128, 32, 128, single),
            (32, 128, 128, 32, 4096, torch.bfloat16),
            (9, 64, 64, 9, 64, torch.bfloat16),
            (128, 64, 128, 8, 1024, torch.bfloat16),
        ):
            inner, channels = heads * width, heads * width + 2 * groups * states
            mamba2._step(
                empty(8, inner + channels + heads, of=dtype),
                empty(8, channels, 4, of=dtype),
                empty(8, heads, width, states, of=single),
                empty(channels, 4, of=dtype),
                empty(channels, of=dtype),
                *(empty(heads, of=dtype) for _ in range(3)),
                empty(inner, of=dtype),
                1e-5,
                group,
                None,
            )
    return found


def norms() -> list[Case]:
    found: list[Case] = []
    with mock.patch.object(norm, "norm_kernel", Recorded(norm.norm_kernel, found)):
        for width, dtype in ((4096, torch.bfloat16), (576, torch.float32), (16384, torch.bfloat16)):
            norm.rms_norm(empty(8, 1, width, of=dtype), empty(width, of=dtype), 1e-5, None, width)
    return found


def gates() -> list[Case]:
    found: list[Case] = []
    with mock.patch.object(mlp, "gate_kernel", Recorded(mlp.gate_kernel, found)):
        mlp.silu_mul(empty(8, 1, 11008), empty(8, 1, 11008))
    return found


def products() -> list[Case]:
    found: list[Case] = []
    with mock.patch.object(product, "gated_kernel", Recorded(product.gated_kernel, found)):
        for rows, width, neurons in ((8, 4096, 11008), (16, 768, 1000)):
            product.gated_product(empty(rows, 1, width), empty(neurons, width), empty(neurons, width))
    return found


def normed_products() -> list[Case]:
    found: list[Case] = []
    with (
        mock.patch.object(product, "gated_kernel", Recorded(product.gated_kernel, found)),
        mock.patch.object(skinny, "linear_kernel", Recorded(skinny.linear_kernel, found)),
    ):
        for rows, width, neurons in ((8, 4096, 11008), (16, 768, 1000)):
            stream, matrices = empty(rows, 1, width), (empty(neurons, width), empty(neurons, width))
            given = stream, empty(width, width), stream, empty(width), 1e-5, *matrices
            product.normed_gated_product(*given)
    return found


def linears() -> list[Case]:
    found: list[Case] = []
    with (
        mock.patch.object(skinny, "linear_kernel", Recorded(skinny.linear_kernel, found)),
        mock.patch.object(scan, "step_kernel"),
        mock.patch.object(norm, "norm_kernel"),
    ):
        for rows in (8, 16):
            inner, channels = 4096, 3 * 4096
            mamba2._step(
                empty(rows, 4096),
                empty(rows, channels, 4),
                empty(rows, 32, 128, 128, of=torch.float32),
                empty(channels, 4),
                empty(channels),
                *(empty(32) for _ in range(3)),
                empty(inner),
                1e-5,
                128,
                empty(inner + channels + 32, 4096),
            )
        for rows, width, columns in ((8, 4096, 4096), (8, 4096, 16416), (16, 11008, 4096), (3, 384, 1000)):
            residual = empty(rows, 1, columns) if columns == 4096 else None
            skinny.skinny_linear(empty(rows, 1, width), empty(columns, width), residual)
    return found
