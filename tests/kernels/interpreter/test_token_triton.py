"""The Triton kernels of one token against formulas in float64: a mixer's step, norms, the gate of an MLP."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from token_inputs import SHAPES, doubled, formula, token
from torch import Tensor
from transmamba_kernels import (
    gated_product,
    mamba2_step,
    patch_transformers,
    rms_norm,
    silu_mul,
    skinny_linear,
)


def placed(arguments: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {n: v.to(device) if isinstance(v, Tensor) else v for n, v in arguments.items()}


def near(found: Tensor, truth: Tensor, allowed: float, what: str) -> None:
    assert found.isfinite().all(), what
    error = (found.double().cpu() - truth).norm()
    assert error <= allowed * truth.norm(), f"{what}: {error:.2e} of {truth.norm():.2e}"


def check(arguments: dict[str, Any], device: torch.device, allowed: float) -> None:
    truth = formula(**doubled(arguments))
    given = placed(arguments, device)
    y = mamba2_step(**given)
    for what, found, right in zip(
        ("y", "conv_state", "state"), (y, given["conv_state"], given["state"]), truth, strict=True
    ):
        near(found, right, allowed, what)


@pytest.mark.parametrize("shape", SHAPES)
def test_mixer(device, shape):
    check(token(shape), device, 1e-5)


@pytest.mark.parametrize(
    ("taps", "older", "bias"), [(1, 0, True), (2, 2, False), (4, 0, True), (4, 3, False)]
)
@pytest.mark.parametrize("shape", ["odd sizes", "B and C shared"])
def test_taps_and_kept_tokens(device, shape, taps, older, bias):
    check(token(shape, taps=taps, older=older, bias=bias), device, 1e-5)


@pytest.mark.parametrize("shape", ["a head a group", "one group"])
def test_half_precision(device, shape):
    """All but the state, which stays float32, as a cache holds it."""
    arguments = token(shape)
    half = {n: v.bfloat16() if isinstance(v, Tensor) and n != "state" else v for n, v in arguments.items()}
    truth = formula(**doubled(half))
    given = placed(half, device)
    y = mamba2_step(**given)
    assert y.dtype == given["conv_state"].dtype == torch.bfloat16 and given["state"].dtype == torch.float32
    near(y, truth[0], 1e-2, "y")
    near(given["conv_state"], truth[1], 1e-2, "conv_state")
    near(given["state"], truth[2], 1e-2 if shape == "one group" else 1e-5, "state")


@pytest.mark.parametrize(
    ("shape", "rows", "bias"),
    [
        ("a head a group", 1, True),
        ("B and C shared", 3, False),
        ("B and C shared", 16, True),
        ("odd sizes", 16, False),
        ("odd sizes", 17, True),
        ("heads of Mamba-2's", 3, True),
    ],
)
def test_with_the_projection(device, shape, bias, rows):
    """In half precision, as its kernel wants it; of 17 rows it is torch's product."""
    arguments = token(shape, batch=rows, bias=bias)
    half = {n: v.bfloat16() if isinstance(v, Tensor) and n != "state" else v for n, v in arguments.items()}
    x = torch.randn(rows, 256).bfloat16()
    weight = (torch.randn(half["projected"].shape[1], 256) / 16).bfloat16()
    projected = x.double() @ weight.double().T
    truth = formula(**doubled(half | {"projected": projected}))
    given = placed(half, device)
    kept = given["conv_state"][:, :, :-1].clone()
    y = mamba2_step(**given | {"projected": x.to(device), "in_weight": weight.to(device)})
    assert y.dtype == torch.bfloat16 and torch.equal(
        given["conv_state"][:, :, :-1].cpu(), truth[1][:, :, :-1]
    )
    near(y, truth[0], 2e-2, "y")  # of the interpreter's, which rounds downwards
    near(given["conv_state"], truth[1], 1e-2, "conv_state")
    near(given["state"], truth[2], 1e-2, "state")
    assert not torch.equal(given["conv_state"][:, :, :-1], kept)


@pytest.mark.parametrize("shape", ["a head a group", "B and C shared"])
def test_strided_states_and_projection(device, shape):
    """States with other strides, inside tensors of which nothing else changes; a projection cut out."""
    arguments = token(shape)
    truth = formula(**doubled(arguments))
    given = placed(arguments, device)
    wide = torch.full((3, given["projected"].shape[1] + 5), torch.nan, device=device)
    wide[:, 5:] = given["projected"]
    states = {}
    for name in ("conv_state", "state"):
        states[name] = torch.full((2, *given[name].transpose(-1, -2).shape), 7.0, device=device)
        states[name][1] = given[name].transpose(-1, -2)
    views = {n: x[1].transpose(-1, -2) for n, x in states.items()}
    y = mamba2_step(**given | views | {"projected": wide[:, 5:]})
    near(y, truth[0], 1e-5, "y")
    for name, right in zip(states, truth[1:], strict=True):
        near(states[name][1].transpose(-1, -2), right, 1e-5, name)
        assert (states[name][0] == 7).all()


def test_extreme_steps(device):
    """Steps of hundreds and of 1e-9, decays to nothing and of none."""
    arguments = token("a head a group")
    arguments["dt_bias"] = torch.tensor([300.0, -20.0, 50.0, 0.0])
    arguments["A_log"] = torch.tensor([5.0, 5.0, -20.0, -20.0])
    check(arguments, device, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("channels", "group"), [(48, 48), (7, 7), (48, 12), (9, 3), (600, 600)])
def test_norm(device, channels, group, gated, dtype):
    torch.manual_seed(channels)
    x, gate = (5 * torch.randn(2, 3, channels + 4).to(dtype)[..., 4:] for _ in range(2))
    weight = torch.randn(channels).to(dtype)
    wide = x.double() * F.silu(gate.double()) if gated else x.double()
    groups = wide.unflatten(-1, (-1, group))
    truth = F.rms_norm(groups, (group,), None, 1e-3).flatten(-2) * weight.double()
    found = rms_norm(
        x.to(device),
        weight.to(device),
        1e-3,
        gate.to(device) if gated else None,
        None if group == channels else group,
    )
    assert found.dtype == dtype
    near(found, truth, 1e-6 if dtype == torch.float32 else 1e-2, "y")


def test_norm_in_two_dtypes(device):
    """Rounded to x's before the weight, which is wider, multiplies."""
    x, weight = torch.randn(4, 32).bfloat16(), torch.randn(32)
    found = rms_norm(x.to(device), weight.to(device), 1e-5).cpu()
    assert found.dtype == torch.float32
    # what the weight multiplied has bfloat16's 8 digits
    quotient = (found / weight).view(torch.int32)
    assert ((quotient + 2**7) & ~(2**8 - 1)).sub(quotient).abs().max() < 2**6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate(device, dtype):
    both = torch.randn(3, 1, 2 * 1030).to(dtype)
    gate, up = both.chunk(2, dim=-1)
    found = silu_mul(gate.to(device), up.to(device))
    assert found.dtype == dtype
    near(found, F.silu(gate.double()) * up.double(), 1e-6 if dtype == torch.float32 else 1e-2, "y")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "width", "neurons"), [(1, 128, 64), (16, 256, 70), (3, 150, 70), (17, 128, 8)]
)
def test_gated_product(device, rows, width, neurons, dtype):
    torch.manual_seed(rows)
    x = torch.randn(rows, 1, width + 2).to(dtype)[..., 2:]
    gate, up = (torch.randn(neurons, width).to(dtype) for _ in range(2))
    found = gated_product(x.to(device), gate.to(device), up.to(device))
    truth = F.silu(x.double() @ gate.double().T) * (x.double() @ up.double().T)
    assert found.dtype == dtype and found.shape == (rows, 1, neurons)
    # three are rounded, by the interpreter downwards
    near(found, truth, 1e-5 if dtype == torch.float32 else 2e-2, "y")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "width", "columns"), [(1, 128, 64), (8, 256, 70), (16, 384, 33), (3, 150, 70), (17, 128, 8)]
)
@pytest.mark.parametrize("adds", [False, True])
def test_skinny_linear(device, rows, width, columns, dtype, adds):
    torch.manual_seed(rows)
    x = torch.randn(rows, 1, width + 2).to(dtype)[..., 2:]
    weight = torch.randn(columns, width).to(dtype)
    more = torch.randn(rows, 1, columns + 1).to(dtype)[..., 1:] if adds else None
    found = skinny_linear(x.to(device), weight.to(device), None if more is None else more.to(device))
    truth = x.double() @ weight.double().T + (0.0 if more is None else more.double())
    assert found.dtype == dtype and found.shape == (rows, 1, columns)
    near(found, truth, 1e-5 if dtype == torch.float32 else 1e-2, "y")


def test_rows_far_from_each_other(device):
    """Beyond 2^31 numbers; of the memory between nothing is touched."""
    x = torch.empty(2**31 + 384, dtype=torch.bfloat16, device=device).as_strided((3, 128), (2**30 + 128, 1))
    x.copy_(torch.randn(3, 128))
    weight = torch.randn(8, 128).bfloat16().to(device)
    near(skinny_linear(x, weight), (x.double() @ weight.double().T).cpu(), 1e-2, "y")
    near(gated_product(x, weight, weight), gated_product(x.clone(), weight, weight).double().cpu(), 1e-6, "y")


@torch.no_grad()
def test_a_layer_of_a_model(device):
    """All of a Bamba's token on these kernels, beside transformers' own code."""
    from transformers import BambaConfig, BambaForCausalLM, DynamicCache

    torch.manual_seed(0)
    config = BambaConfig(
        **dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, attn_layer_indices=[0]),
        **dict(num_attention_heads=2, num_key_value_heads=2, vocab_size=64, mamba_n_heads=4),
        **dict(mamba_d_head=64, mamba_n_groups=2, mamba_d_state=16, mamba_chunk_size=16, pad_token_id=0),
    )
    model = BambaForCausalLM(config).to(device, torch.bfloat16).eval()
    found = []
    for patched in (False, True):
        cache = DynamicCache(config=config)
        model(torch.ones(3, 5, dtype=torch.int64, device=device), past_key_values=cache, use_cache=True)
        with patch_transformers(["bamba"]) if patched else nullcontext():
            place = torch.full((1, 1), 5, device=device)
            text = torch.arange(1, 4, device=device)[:, None]
            said = model(text, past_key_values=cache, use_cache=True, position_ids=place).logits
        layer = cache.layers[1]
        found.append((said, layer.conv_states[0], layer.recurrent_states[0]))
    for what, ours, theirs in zip(("logits", "conv_state", "state"), *reversed(found), strict=True):
        near(ours, theirs.double().cpu(), 3e-2, what)


def test_registered_ops(device, monkeypatch):
    import transmamba_kernels.gated_product.gpu
    import transmamba_kernels.mamba2_step.gpu
    import transmamba_kernels.rms_norm.gpu
    import transmamba_kernels.silu_mul.gpu
    import transmamba_kernels.skinny_linear.gpu  # noqa: F401

    monkeypatch.undo()
    ops = torch.ops.transmamba
    given = placed(token("odd sizes"), device)
    torch.library.opcheck(ops.mamba2_step_triton.default, (*given.values(), None))
    given = {n: v.half() if isinstance(v, Tensor) and n != "state" else v for n, v in given.items()}
    in_weight = torch.randn(given["projected"].shape[1], 128, device=device).half()
    given["projected"] = torch.randn(3, 128, device=device).half()
    torch.library.opcheck(ops.mamba2_step_triton.default, (*given.values(), in_weight))
    x, weight = torch.randn(2, 12, device=device), torch.randn(12, device=device)
    torch.library.opcheck(ops.rms_norm_triton.default, (x, weight, x, 1e-5, 4))
    torch.library.opcheck(ops.silu_mul_triton.default, (x, x))
    half = torch.randn(2, 128, device=device).half()
    torch.library.opcheck(ops.skinny_linear_triton.default, (half, half, half[:, :2]))
    torch.library.opcheck(
        ops.gated_product_triton.default, tuple(torch.randn(3, 2, 128, device=device).half())
    )


def test_cuda_graph(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    for shape in SHAPES:
        given = placed(token(shape), device)
        twin = given | {n: given[n].clone() for n in ("conv_state", "state")}
        spare = given | {n: given[n].clone() for n in ("conv_state", "state")}
        expected = [mamba2_step(**given) for _ in range(3)][-1]
        mamba2_step(**spare)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = mamba2_step(**twin)
        for _ in range(3):
            graph.replay()
        assert torch.equal(y, expected) and torch.equal(twin["state"], given["state"])
        assert torch.equal(twin["conv_state"], given["conv_state"])
