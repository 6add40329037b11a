"""The peers' whole mixers against transformers' layers and against their parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM
from transmamba_kernels import causal_conv1d, compat, selective_scan

BATCH, LENGTH, TAPS = 2, 17, 4


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def mixer(name: str, **changes: Any) -> Any:
    sizes = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes, **changes)).float()
    return model.backbone.layers[0].mixer


def test_mamba_inner_fn():
    m, x = mixer("mamba"), normal(BATCH, LENGTH, 16)
    found = compat.mamba_inner_fn(
        m.in_proj(x).transpose(1, 2),
        m.conv1d.weight,
        m.conv1d.bias,
        m.x_proj.weight,
        m.dt_proj.weight,
        m.out_proj.weight,
        m.out_proj.bias,
        -m.A_log.exp(),
        D=m.D,
        delta_bias=m.dt_proj.bias,
    )
    assert_near(found, m(x))


def test_mamba_inner_fn_with_norms():
    """Norms of weight 1 leave inputs of norm 1 alone, in the places where the peer has them."""
    D, N, R = 3, 4, 2
    xz, A = normal(BATCH, 2 * D, LENGTH), -normal(D, N).abs()
    weights = (normal(D, 1, TAPS), None, normal(R + 2 * N, D), normal(D, R), normal(5, D), None)
    scales = {"b_rms_weight": normal(N), "c_rms_weight": normal(N), "dt_rms_weight": normal(D)}
    x, z = xz.transpose(1, 2).chunk(2, -1)
    x = causal_conv1d(x, weights[0][:, 0], None, "silu")
    dt, B, C = (x @ weights[2].T).split([R, N, N], -1)
    B, C = (
        F.rms_norm(B, (N,), scales["b_rms_weight"], 1e-6),
        F.rms_norm(C, (N,), scales["c_rms_weight"], 1e-6),
    )
    dt = F.rms_norm(dt @ weights[3].T, (D,), scales["dt_rms_weight"], 1e-6)
    expected = selective_scan(x, dt, A, B, C, z=z, delta_softplus=True) @ weights[4].T
    assert_near(compat.mamba_inner_fn(xz, *weights, A, **scales), expected)


@pytest.mark.parametrize("final", [False, True])
def test_mamba_split_conv1d_scan_combined(final):
    # one group: transformers 5.17 norms all channels together, whatever their groups
    m = mixer("mamba2", num_heads=4, head_dim=8, n_groups=1, chunk_size=8)
    x = normal(BATCH, LENGTH, 16)
    found = compat.mamba_split_conv1d_scan_combined(
        m.in_proj(x),
        m.conv1d.weight.squeeze(1),
        m.conv1d.bias,
        m.dt_bias,
        -m.A_log.exp(),
        m.D,
        8,
        return_final_states=final,
        rmsnorm_weight=m.norm.weight,
        rmsnorm_eps=m.norm.variance_epsilon,
        outproj_weight=m.out_proj.weight,
        outproj_bias=m.out_proj.bias,
        headdim=8,
        ngroups=1,
        norm_before_gate=False,
    )
    assert_near(found[0] if final else found, m(x))


def test_gate_without_and_after_the_norm():
    m = mixer("mamba2", num_heads=4, head_dim=8, n_groups=2, chunk_size=8)
    zxbcdt = m.in_proj(normal(BATCH, LENGTH, 16))
    shared = (m.conv1d.weight.squeeze(1), m.conv1d.bias, m.dt_bias, -m.A_log.exp(), m.D, 8)
    z = zxbcdt[..., :32]

    def run(gate: bool, **more: Any) -> torch.Tensor:
        inputs = zxbcdt if gate else torch.cat([torch.full_like(z, 1e4), zxbcdt[..., 32:]], -1)
        out = compat.mamba_split_conv1d_scan_combined(inputs, *shared, headdim=8, ngroups=2, **more)
        return out if gate else out / 1e4

    plain = run(gate=False)  # silu(1e4) = 1e4
    assert_near(run(gate=True), plain * F.silu(z))
    weight = normal(32)
    normed = F.rms_norm(plain.unflatten(-1, (2, 16)), (16,), eps=1e-6).flatten(-2) * weight
    assert_near(run(gate=True, rmsnorm_weight=weight), normed * F.silu(z))
