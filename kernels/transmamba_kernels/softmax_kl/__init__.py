"""KL divergence of two softmaxes over a vocabulary, without a distribution of either in memory."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_floating, expect_rank
from . import cpu, reference

__all__ = ["softmax_kl"]


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p ‖ q) of each row, in nats, with p = softmax(teacher / T) and q = softmax(student / T).

    student, teacher: logits (N, V). The result: (N,), in float32, or in float64 where a tensor is. Where p is
    0 (a teacher's logit is -inf) a word adds nothing; where q alone is 0 the divergence is inf. The gradient
    is the student's, (q - p) / T; the teacher has none.

    Raises ValueError for shapes that do not fit, a temperature that is not above 0, a teacher's tensor that
    asks for a gradient, and tensors on several devices.
    """
    expect_floating(student=student, teacher=teacher)
    expect_rank("student", student, "(N, V)")
    expect("teacher", teacher, "(N, V)", *student.shape)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: {temperature}, expected a number above 0")
    if teacher.requires_grad:
        raise ValueError("teacher: it asks for a gradient, which softmax_kl does not have; detach it")
    path = choose("softmax_kl", student, teacher)
    run: Callable[[Tensor, Tensor, float], Tensor]
    if path == "triton":
        from . import gpu

        run = gpu.softmax_kl
    else:
        run = reference.softmax_kl if path == "reference" else cpu.softmax_kl
    return run(student, teacher, float(temperature))
