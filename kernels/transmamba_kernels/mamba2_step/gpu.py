"""One token of a Mamba-2 mixer in Triton: three launches, which a CUDA graph can hold, of which the first is
the product with the projection too, where that is given.

One launch, a program a head with its channels of the convolution and of the norm, was as good or slower on an
H200: what is in one program then waits for one another, and few fit beside each other (docs/kernels.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..causal_conv1d.gpu import MOST_TAPS, launch_update
from ..rms_norm import gpu as norm
from ..skinny_linear import gpu as skinny
from ..ssd_state_update import gpu as scan
from ..triton_common import rows
from . import cpu


def mamba2_step(**arguments: Any) -> Tensor:
    """Arguments as in `transmamba_kernels.mamba2_step`; y (B, H P)."""
    read, in_weight, state = (arguments[name] for name in ("projected", "in_weight", "state"))
    if in_weight is not None and not skinny.streams(read, in_weight):
        arguments |= {"projected": F.linear(read, in_weight), "in_weight": None}
    taps = max(arguments["conv_weight"].shape[1], arguments["conv_state"].shape[2])
    if state.numel() == 0 or taps > MOST_TAPS or state.shape[3] > scan.MOST_STATES:
        return cpu.mamba2_step(**arguments)
    return (_step_op if torch.compiler.is_compiling() else _step)(**arguments)


def _step(
    projected: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    eps: float,
    group_size: int,
    in_weight: Tensor | None,
) -> Tensor:
    (batch, heads, width, states), channels = state.shape, len(conv_weight)
    inner = heads * width
    groups = (channels - inner) // (2 * states)
    if in_weight is None:
        projected = rows(projected)
        mixed = projected[:, inner : inner + channels]
        convolved = launch_update(mixed, conv_state, conv_weight, conv_bias, True, torch.float32)
    else:
        convolved = torch.empty(batch, channels, dtype=torch.float32, device=projected.device)
        conv = skinny.Convolution(inner, conv_state, conv_weight, conv_bias, convolved)
        projected = skinny.launch(projected, in_weight, convolution=conv)
    x, B, C = convolved.split([inner, groups * states, groups * states], dim=1)
    y = scan.launch(
        state,
        x.view(batch, heads, width),
        projected[:, inner + channels :],
        A_log,
        B.view(batch, groups, states),
        C.view(batch, groups, states),
        D,
        None,
        dt_bias,
        delta_softplus=True,
        log=True,
        dtype=projected.dtype,
    )
    return norm.rms_norm(y.view(batch, inner), norm_weight, eps, projected[:, :inner], group_size)


_step_op = torch.library.custom_op(
    "transmamba::mamba2_step_triton",
    _step,
    mutates_args=("conv_state", "state"),
    schema="(Tensor projected, Tensor(a!) conv_state, Tensor(b!) state, Tensor conv_weight, "
    "Tensor? conv_bias, Tensor dt_bias, Tensor A_log, Tensor D, Tensor norm_weight, float eps, "
    "int group_size, Tensor? in_weight) -> Tensor",
)
_step_op.register_fake(
    lambda projected, conv_state, state, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, *rest: (
        projected.new_empty(
            (len(projected), norm_weight.shape[0]),
            dtype=torch.promote_types(projected.dtype, norm_weight.dtype),
        )
    )
)
