"""Whole students on the Triton kernels against the same students on the PyTorch path."""

from __future__ import annotations

import pytest
import timm
import torch

import transmamba  # noqa: F401  registers the students

SIZES = {"img_size": 16, "patch_size": 8, "num_classes": 3, "depth": 1}
STUDENTS = {
    "vim_tiny_patch16_224": {"embed_dim": 16, "d_state": 4},
    "ssd_vit_tiny_patch16_224": {"embed_dim": 32, "num_heads": 2},
}


def gradients(model, images):
    model.zero_grad()
    logits = model(images)
    logits.float().square().sum().backward()
    return logits.detach().float(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", STUDENTS)
def test_students_agree(name, half, device, monkeypatch):
    torch.manual_seed(0)
    model = timm.create_model(name, **SIZES, **STUDENTS[name]).to(device)
    images = torch.randn(2, 3, 16, 16, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        logits, found = gradients(model, images)
        monkeypatch.setenv("TRANSMAMBA_KERNELS", "cpu")
        right, expected = gradients(model, images)
    limit = 5e-2 if half else 1e-4
    assert (logits - right).norm() <= limit * right.norm()
    assert found.keys() == expected.keys() and len(found) > 10
    total = torch.stack([g.norm() for g in expected.values()]).norm()
    for key, grad in expected.items():
        assert (found[key] - grad).norm() <= limit * total, key
