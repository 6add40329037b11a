"""The divergence in Triton: one launch forward, one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch_ops import Operator, Outputs, nothing
from ..triton_common import FUSED, cdiv, on_device_of, power_of_2, rows
from . import cpu
from .kernels import backward_kernel, forward_kernel

_LOG2E = 1.4426950408889634
_BLOCK = 4096


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Arguments as in `transmamba_kernels.softmax_kl`; (N,) in float32."""
    if student.numel() == 0:
        return cpu.softmax_kl(student, teacher, temperature)
    return KL(student, teacher, temperature)[0]


def _forward(student: Tensor, teacher: Tensor, temperature: float) -> Outputs:
    student, teacher = rows(student), rows(teacher)
    count, words = student.shape
    kl, norm_s, norm_t = (torch.empty(count, dtype=torch.float32, device=student.device) for _ in range(3))
    with on_device_of(student):
        forward_kernel[(count,)](
            student,
            teacher,
            kl,
            norm_s,
            norm_t,
            words,
            student.stride(0),
            teacher.stride(0),
            _LOG2E / temperature,
            BLOCK=min(_BLOCK, power_of_2(words)),
            num_warps=8,
            **FUSED,
        )
    return kl, norm_s, norm_t


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    student, teacher = (rows(x) for x in tensors)
    (temperature,) = flags
    count, words = student.shape
    found = torch.empty(count, words, dtype=student.dtype, device=student.device)
    block = min(_BLOCK, power_of_2(words))
    with on_device_of(student):
        backward_kernel[(count, cdiv(words, block))](
            student,
            teacher,
            grads[0].contiguous(),
            *saved,
            found,
            words,
            student.stride(0),
            teacher.stride(0),
            _LOG2E / temperature,
            1 / temperature,
            BLOCK=block,
            num_warps=8,
            **FUSED,
        )
    return found, nothing(student)


def _fake(student: Tensor, teacher: Tensor, temperature: float) -> Outputs:
    made = [student.new_empty(student.shape[0], dtype=torch.float32) for _ in range(3)]
    return made[0], made[1], made[2]


KL = Operator(
    "softmax_kl_triton",
    "Tensor student, Tensor teacher, float temperature",
    visible=1,
    forward=_forward,
    backward=_backward,
    fake=_fake,
    saved=2,
)
