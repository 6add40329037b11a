"""The Triton divergence against torch.distributions in float64."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from transmamba_kernels import softmax_kl


@pytest.mark.parametrize(
    ("words", "dtype", "temperature"),
    [(5000, torch.float32, 1.0), (37, torch.float32, 2.0), (8192, torch.bfloat16, 1.5)],
)
def test_value_and_gradient(device, size, words, dtype, temperature):
    generator = torch.Generator().manual_seed(words)
    rows = size(300, 3)
    made, wanted = ((4 * torch.randn(rows, words, generator=generator)).to(dtype) for _ in "ab")
    made[0, 1], wanted[0, 1], wanted[1, : words // 2] = -torch.inf, -torch.inf, -torch.inf
    wide = made.double().requires_grad_()
    p, q = (Categorical(logits=x / temperature) for x in (wanted.double(), wide))
    expected = kl_divergence(p, q)
    weights = torch.linspace(0.5, 2, rows, dtype=torch.float64)
    (right,) = torch.autograd.grad((expected * weights).sum(), wide)

    ours = made.to(device).requires_grad_()
    found = softmax_kl(ours, wanted.to(device), temperature)
    (found * weights.float().to(device)).sum().backward()
    assert found.dtype == torch.float32 and ours.grad.dtype == dtype
    torch.testing.assert_close(found.double().cpu(), expected.detach(), rtol=1e-5, atol=1e-5)
    allowed = 1e-6 if dtype == torch.float32 else 1e-2
    error = (ours.grad.double().cpu() - right.nan_to_num()).norm() / right.nan_to_num().norm()
    assert error < allowed


def test_rows_apart_in_memory(device):
    whole = torch.randn(4, 2, 50, generator=torch.Generator().manual_seed(0)).to(device)
    made, wanted = whole[:, 0], whole[:, 1]
    torch.testing.assert_close(softmax_kl(made, wanted), softmax_kl(made.contiguous(), wanted.contiguous()))


def test_compiled_it_is_the_same(device):
    made, wanted = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)).to(device)
    compiled = torch.compile(softmax_kl, backend="aot_eager", fullgraph=True)
    ours, theirs = (made.clone().requires_grad_() for _ in "ab")
    compiled(ours, wanted).sum().backward()
    softmax_kl(theirs, wanted).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
