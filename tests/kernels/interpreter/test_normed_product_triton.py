"""The Triton kernels of what stands between a mixer and its MLP's middle, against formulas in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_token_triton import near
from transmamba_kernels import normed_gated_product


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "width", "channels", "neurons"),
    [(1, 128, 128, 64), (16, 256, 384, 70), (3, 384, 256, 33), (3, 128, 150, 20), (17, 128, 128, 8)],
)
def test_normed_gated_product(device, rows, width, channels, neurons, dtype):
    """Channels of blocks that are whole and not, and streams large against eps and small."""
    torch.manual_seed(rows)
    x = torch.randn(rows, 1, width + 2).to(dtype)[..., 2:]
    weight, residual = torch.randn(channels, width), 5 * torch.randn(rows, 1, channels + 1)
    residual[0] *= 1e-2
    weight[:, :] /= 100 * width
    norm_weight, gate, up = torch.randn(channels), *torch.randn(2, neurons, channels)
    weight, norm_weight, gate, up = (t.to(dtype) for t in (weight, norm_weight, gate, up))
    given = x, weight, residual.to(dtype)[..., 1:], norm_weight
    stream, y = normed_gated_product(*(t.to(device) for t in given), 1e-3, gate.to(device), up.to(device))
    assert stream.dtype == y.dtype == dtype and y.shape == (rows, 1, neurons)
    x, weight, residual, norm_weight, gate, up = (t.double() for t in (*given, gate, up))
    truth = residual + x @ weight.T
    normed = F.rms_norm(truth, (channels,), norm_weight, 1e-3)
    allowed = 1e-5 if dtype == torch.float32 else 2e-2
    near(stream, truth, allowed, "stream")
    wanted = F.silu(normed @ gate.T) * (normed @ up.T)
    near(y, wanted, 1.5 * allowed, "y")
    for row in range(rows):  # each has its own norm, and rounds on its own
        near(y[row], wanted[row], 4 * allowed, f"y of row {row}")


def test_normed_half_precision_does_not_overflow(device):
    """A stream of float16 that its weight would take beyond what that holds."""
    one = torch.ones(1, 128, device=device).half()
    matrix = torch.zeros(128, 128, device=device).half().fill_diagonal_(1)
    _, y = normed_gated_product(one, matrix, 6e4 * one, 4 * one[0], 1e-5, matrix, matrix)
    near(y, F.silu(torch.full((1, 128), 4.0).double()) * 4, 1e-2, "y")


def test_registered_op(device, monkeypatch):
    import transmamba_kernels.gated_product.gpu  # noqa: F401

    monkeypatch.undo()
    ops = torch.ops.transmamba
    x, weight = torch.randn(2, 128, device=device).bfloat16(), torch.randn(128, 128, device=device).bfloat16()
    normed = (x, weight, x.clone(), weight[0], 1e-5, weight, weight)
    torch.library.opcheck(ops.normed_gated_product_triton.default, normed)
