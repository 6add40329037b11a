"""The peers' names and layouts, against transformers' slow functions and against this package's operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba2 import modeling_mamba2
from transmamba_kernels import compat, selective_scan, seq_idx_from_cu_seqlens, ssd_scan

BATCH, CHANNELS, LENGTH, STATES, TAPS = 2, 6, 17, 4, 4
HEADS, WIDTH, GROUPS = 4, 5, 2


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator)


def assert_near(found: Any, expected: Any) -> None:
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def scan_inputs() -> dict[str, Any]:
    tokens = {n: normal(BATCH, CHANNELS, LENGTH) for n in ("u", "delta", "z")}
    matrices = {"B": normal(BATCH, STATES, LENGTH), "C": normal(BATCH, STATES, LENGTH).flip(1)}
    rest = {"A": -normal(CHANNELS, STATES).abs(), "D": normal(CHANNELS), "delta_bias": normal(CHANNELS)}
    return {**tokens, **matrices, **rest, "delta_softplus": True}


@pytest.mark.parametrize("last", [False, True])
def test_selective_scan_fn(last):
    a = scan_inputs()
    renamed = {"hidden_states": a["u"], "dt": a["delta"]} | {n: a[n] for n in a if n not in ("u", "delta")}
    expected = modeling_mamba.mamba_selective_scan(**renamed, return_last_state=last)
    assert_near(compat.selective_scan_fn(**a, return_last_state=last), expected)


@pytest.mark.parametrize(
    ("B_shape", "C_shape"), [("dn", "dn"), ("dn", "bnl"), ("bgnl", "bnl"), ("bgnl", "bgnl")]
)
def test_forms_of_B_and_C(B_shape, C_shape):
    shapes = {
        "dn": (CHANNELS, STATES),
        "bnl": (BATCH, STATES, LENGTH),
        "bgnl": (BATCH, 3, STATES, LENGTH),
    }

    def full(matrix: torch.Tensor, form: str) -> torch.Tensor:
        """(B, L, D, N)."""
        if form == "dn":
            return matrix.expand(BATCH, LENGTH, -1, -1)
        if form == "bnl":
            return matrix.transpose(1, 2).unsqueeze(2).expand(-1, -1, CHANNELS, -1)
        return matrix.repeat_interleave(CHANNELS // 3, 1).movedim(-1, 1)

    a = scan_inputs() | {"B": normal(*shapes[B_shape]), "C": normal(*shapes[C_shape])}
    u, delta, z = (a[n].transpose(1, 2) for n in ("u", "delta", "z"))
    B, C = full(a["B"], B_shape), full(a["C"], C_shape)
    expected = selective_scan(u, delta, a["A"], B, C, a["D"], z, a["delta_bias"], True).transpose(1, 2)
    assert_near(compat.selective_scan_fn(**a), expected)


def test_layouts_are_views():
    """(B, D, L) that is channel-last in memory, as projections make it, comes back channel-last."""
    a = scan_inputs()
    for name in ("u", "delta", "z"):
        a[name] = a[name].transpose(1, 2).contiguous().transpose(1, 2)
    assert compat.selective_scan_fn(**a).transpose(1, 2).is_contiguous()
    out = compat.causal_conv1d_fn(a["u"], normal(CHANNELS, TAPS))
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
def test_causal_conv1d_fn(activation):
    x, weight, bias = normal(BATCH, CHANNELS, LENGTH), normal(CHANNELS, TAPS), normal(CHANNELS)
    expected = modeling_mamba.causal_conv1d_fn(x, weight, bias, activation=activation)
    assert_near(compat.causal_conv1d_fn(x, weight, bias, activation=activation), expected)
    states = torch.empty(BATCH, CHANNELS, TAPS - 1)
    out, end = compat.causal_conv1d_fn(
        x, weight, bias, return_final_states=True, final_states_out=states, activation=activation
    )
    assert_near((out, states), (expected, x[..., -3:]))
    assert end is states


def test_causal_conv1d_fn_packed():
    x, weight = normal(1, CHANNELS, LENGTH), normal(CHANNELS, TAPS)
    ids = seq_idx_from_cu_seqlens(torch.tensor([0, 5]), LENGTH)
    parts = [compat.causal_conv1d_fn(part, weight) for part in (x[..., :5], x[..., 5:])]
    assert_near(compat.causal_conv1d_fn(x, weight, seq_idx=ids), torch.cat(parts, -1))


@pytest.mark.parametrize("kept", [TAPS - 1, TAPS, TAPS + 3])
@pytest.mark.parametrize("shape", [(BATCH, CHANNELS), (BATCH, CHANNELS, 1), (BATCH, CHANNELS, 3)])
def test_causal_conv1d_update(shape, kept):
    x, state, weight = normal(*shape), normal(BATCH, CHANNELS, kept), normal(CHANNELS, TAPS)
    reference = state.clone()
    tokens = x.unsqueeze(-1) if x.dim() == 2 else x
    expected = modeling_mamba.causal_conv1d_update(tokens, reference, weight, None, "silu").view(shape)
    assert_near(compat.causal_conv1d_update(x, state, weight, None, "silu"), expected)
    assert_near(state, reference)


def test_rows_of_states():
    rows = torch.tensor([3, 1])
    x, weight, states = normal(BATCH, CHANNELS), normal(CHANNELS, TAPS), normal(5, CHANNELS, TAPS)
    before, some = states.clone(), states[rows]
    expected = compat.causal_conv1d_update(x, some, weight)
    assert_near(compat.causal_conv1d_update(x, states, weight, conv_state_indices=rows), expected)
    assert_near(states, before.index_copy(0, rows, some))
    a = heads_inputs(tied=True)
    states = normal(5, HEADS, WIDTH, STATES)
    before, some = states.clone(), states[rows]
    expected = compat.selective_state_update(**a | {"state": some})
    assert_near(compat.selective_state_update(**a | {"state": states}, state_batch_indices=rows), expected)
    assert_near(states, before.index_copy(0, rows, some))


def heads_inputs(tied: bool, batch: int = BATCH) -> dict[str, Any]:
    def one_a_head(*shape: int, dims: int = 1) -> torch.Tensor:
        full = (*shape, WIDTH, STATES)[: len(shape) + dims]
        return normal(*shape)[(..., *[None] * dims)].expand(full) if tied else normal(*full)

    return {
        "state": normal(batch, HEADS, WIDTH, STATES),
        "x": normal(batch, HEADS, WIDTH),
        "dt": one_a_head(batch, HEADS),
        "A": -one_a_head(HEADS, dims=2).abs() if not tied else one_a_head(HEADS, dims=2),
        "B": normal(batch, GROUPS, STATES),
        "C": normal(batch, GROUPS, STATES).flip(0),
        "D": normal(HEADS, WIDTH),
        "z": normal(batch, HEADS, WIDTH),
        "dt_bias": one_a_head(HEADS),
        "dt_softplus": True,
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("strided", [False, True])
def test_selective_state_update_of_heads(tied, strided):
    a = heads_inputs(tied)
    if strided:
        a["state"] = a["state"].transpose(1, 2).contiguous().transpose(1, 2)
    reference = a["state"].clone()
    dt = F.softplus(a["dt"] + a["dt_bias"])
    B, C = (a[n].repeat_interleave(HEADS // GROUPS, 1).unsqueeze(2) for n in ("B", "C"))
    new = torch.exp(dt.unsqueeze(-1) * a["A"]) * reference + (dt * a["x"]).unsqueeze(-1) * B
    expected = ((new * C).sum(-1) + a["D"] * a["x"]) * F.silu(a["z"])
    assert_near(compat.selective_state_update(**a), expected)
    assert_near(a["state"], new)


def test_selective_state_update_of_channels():
    a = scan_inputs()
    token = {n: a[n][..., 0] for n in ("B", "C", "z")} | {n: a[n] for n in ("A", "D")}
    token |= {"dt_bias": a["delta_bias"], "dt_softplus": True}
    state = normal(BATCH, CHANNELS, STATES)
    reference = state.clone()
    inputs = (a["u"][..., 0], a["delta"][..., 0])
    expected = modeling_mamba.mamba_selective_state_update(reference, *inputs, **token)
    assert_near(compat.selective_state_update(state, *inputs, **token), expected)
    assert_near(state, reference)


def ssd_inputs(batch: int = BATCH) -> dict[str, Any]:
    return {
        "x": normal(batch, LENGTH, HEADS, WIDTH),
        "dt": normal(batch, LENGTH, HEADS),
        "A": -normal(HEADS).abs(),
        "B": normal(batch, LENGTH, GROUPS, STATES),
        "C": normal(batch, LENGTH, GROUPS, STATES).flip(1),
        "chunk_size": 8,
        "D": normal(HEADS),
        "dt_bias": normal(HEADS).flip(0),
        "dt_softplus": True,
    }


@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.3, 0.9)])
def test_mamba_chunk_scan_combined(limit):
    a = ssd_inputs() | {"initial_states": normal(BATCH, HEADS, WIDTH, STATES), "dt_limit": limit}
    a["return_final_states"] = True
    renamed = {"hidden_states": a["x"]} | {n: v for n, v in a.items() if n != "x"}
    assert_near(compat.mamba_chunk_scan_combined(**a), modeling_mamba2.mamba2_chunk_scan(**renamed))


@pytest.mark.parametrize("final", [False, True])
def test_states_of_packed_sequences(final):
    a, bounds = ssd_inputs(1), torch.tensor([0, 3, 4, LENGTH], dtype=torch.int32)
    out, *more = compat.mamba_chunk_scan_combined(
        **a, cu_seqlens=bounds, return_varlen_states=True, return_final_states=final
    )
    names = {"dt": "delta", "dt_bias": "delta_bias", "dt_softplus": "delta_softplus"}
    ours = {names.get(n, n): v for n, v in a.items() if n != "chunk_size"}
    for i in range(3):
        cut = slice(bounds[i], bounds[i + 1])
        part = {n: v[:, cut] if n in ("x", "delta", "B", "C") else v for n, v in ours.items()}
        y, state = ssd_scan(**part, return_final_state=True)
        assert_near((out[:, cut], more[-1][i : i + 1]), (y, state))
    assert len(more) == 1 + final
    if final:
        assert_near(more[0], state)


def test_refusals():
    state = torch.zeros(2, 3, 2)
    with pytest.raises(
        ValueError, match=r"conv_state: shape \(2, 3, 2\), expected \(B, D, S\), S at least 3"
    ):
        compat.causal_conv1d_update(torch.zeros(2, 3), state, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="cache_seqlens: a tensor, expected None"):
        compat.causal_conv1d_update(
            torch.zeros(2, 3), state, torch.zeros(3, 3), cache_seqlens=torch.zeros(2).int()
        )
    with pytest.raises(ValueError, match="cu_seqlens: None, expected offsets, and a batch of 1"):
        compat.mamba_chunk_scan_combined(**ssd_inputs(), return_varlen_states=True)
    with pytest.raises(ValueError, match="headdim: None, expected an integer"):
        compat.mamba_split_conv1d_scan_combined(
            *[torch.zeros(2, 2, 2)] * 4, torch.zeros(2), torch.zeros(2), 8
        )
    with pytest.raises(ValueError, match=r"A: dtype torch\.complex64, expected a real floating-point type"):
        compat.selective_state_update(
            **heads_inputs(False) | {"A": torch.zeros(HEADS, WIDTH, STATES).to(torch.complex64)}
        )


def test_an_mlp_part_is_refused_by_name():
    """Beside zxbcdt's own columns mamba_ssm takes those of a gated MLP, 2 * 7 of them here."""
    conv = HEADS * WIDTH + 2 * GROUPS * STATES
    width = HEADS * WIDTH + conv + HEADS
    head = torch.zeros(HEADS)
    rest = (normal(conv, TAPS), None, head, head - 1, head, 8)
    says = f"zxbcdt: {width + 14} columns, expected 2 H P \\+ 2 G N \\+ H = {width}; an MLP part in front"
    with pytest.raises(ValueError, match=says):
        compat.mamba_split_conv1d_scan_combined(
            normal(BATCH, 3, width + 14), *rest, headdim=WIDTH, ngroups=GROUPS
        )


def test_complex_rates_are_blamed_on_themselves():
    """mamba_ssm's complex A comes with B and C of twice the width, which fit no shape here either."""
    a = scan_inputs() | {"A": torch.zeros(CHANNELS, STATES, dtype=torch.complex64)}
    a |= {n: a[n].repeat(1, 1, 2) for n in ("B", "C")}
    with pytest.raises(ValueError, match=r"^A: dtype torch\.complex64, expected a real floating-point type"):
        compat.selective_scan_fn(**a)
