"""What methods do inside a mixer, against plain loops in float64 over the papers' equations."""

from __future__ import annotations

from typing import Any

import peft_models as tiny
import pytest
import torch
import torch.nn.functional as F
from test_peft_students import adapted as adapted_student
from torch import Tensor

WEIGHTS = ["lora_x", "lora_z", "lora_b", "lora_c", "lora_d", "lora_out", "a", "d", "bias", "conv1d"]
CASES = {
    "weights": WEIGHTS,
    "bitfit": ["bitfit", "lora_in", "lora_x_proj", "lora_dt"],
    "inside": ["state_offset_h", "state_offset_y", "parallel_adapter"],
    "start": ["initial_state", "affix"],
    "low rank": [{"name": "state_offset_h", "r": 2, "ratio": 4}],
    "all": [*WEIGHTS, "additional_scan", *tiny.INSIDE, "affix"],
}


def parts_of(layer: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The base's weights and the adapter's tensors, in float64."""
    own = {name: p.detach().double() for name, p in layer.base_layer.named_parameters()}
    return own, {
        name: p.detach().double() for name, p in layer.transmamba_adapters["default"].named_parameters()
    }


def lora(t: dict[str, Tensor], name: str) -> Tensor | float:
    return 0.1 * t[f"{name}_up"] @ t[f"{name}_down"] if f"{name}_up" in t else 0.0


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(L, D): silu(bias + sum_j w_j x_(t - K + 1 + j))."""
    taps = weight.shape[-1]
    longer = torch.cat([x.new_zeros(taps - 1, x.shape[1]), x])
    return F.silu(torch.stack([(longer[t : t + taps] * weight[:, 0].T).sum(0) + bias for t in range(len(x))]))


def mamba(layer: Any, u: Tensor, suffix: str = "", order: list[int] | None = None) -> Tensor:
    """One row u (L, d), equations 2 and 3 of Mamba with the adapter's tensors where the papers put them: y
    with its skip and its offset, before the gate.

    order: of the row's tokens, 0 to L - 1, and the affix's, from L; by default these are in front
    """
    w, t = parts_of(layer)
    inner, state, rank = layer.mixer.inner, layer.mixer.state, layer.mixer.rank
    rows = w["in_proj.weight"] + lora(t, "lora_in")
    x, affix = u @ (rows[:inner] + lora(t, "lora_x")).T, t.get(f"affix{suffix}", t.get("affix"))
    order = order or [*range(len(u), len(u) + (0 if affix is None else len(affix))), *range(len(u))]
    x = x if affix is None else torch.cat([x, affix[:, :inner]])[order]
    conv = w[f"conv1d{suffix}.weight"] + t.get(f"conv1d{suffix}", 0.0)
    x = convolved(x, conv, w[f"conv1d{suffix}.bias"] + t.get(f"bitfit_conv{suffix}", 0.0))
    made = w[f"x_proj{suffix}.weight"] + lora(t, f"lora_x_proj{suffix}")
    delta = x @ (made[:rank] + lora(t, f"lora_d{suffix}")).T
    B = x @ (made[rank : rank + state] + lora(t, f"lora_b{suffix}")).T
    C = x @ (made[rank + state :] + lora(t, f"lora_c{suffix}")).T
    log = w["A_log" if not suffix else "A_b_log"]
    if f"additional_scan{suffix}_b" in t:
        new = log[:, :1] + t[f"additional_scan{suffix}_a"]
        B = torch.cat([B, x @ t[f"additional_scan{suffix}_b"].T], dim=1)
        C = torch.cat([C, x @ t[f"additional_scan{suffix}_c"].T], dim=1)
    A = -(log + t.get(f"a{suffix}", 0.0)).exp()
    if f"additional_scan{suffix}_b" in t:
        A = torch.cat([A, -new.exp()], dim=1)
    bias = w[f"dt_proj{suffix}.bias"] + t.get(f"bias{suffix}", 0.0) + t.get(f"bitfit_dt{suffix}", 0.0)
    dt = F.softplus(delta @ (w[f"dt_proj{suffix}.weight"] + lora(t, f"lora_dt{suffix}")).T + bias)
    skip = w[f"D{suffix}"] + t.get(f"d{suffix}", 0.0)
    h, ys = torch.zeros_like(A), []
    h[:, :state] = t.get(f"initial_state{suffix}", 0.0)
    for step in range(len(x)):
        h = (dt[step][:, None] * A).exp() * h + (dt[step] * x[step])[:, None] * B[step]
        ys.append((h * C[step]).sum(1) + skip * x[step] + offset(t, C[step, :state], suffix))
    return torch.stack([ys[order.index(token)] for token in range(len(u))])


def offset(t: dict[str, Tensor], C: Tensor, suffix: str = "") -> Tensor | float:
    """C_t . h' of every channel."""
    name = f"state_offset_h{suffix}"
    if f"{name}_up" in t:
        return (t[f"{name}_up"] @ t[f"{name}_down"]).reshape(-1, len(C)) @ C
    return t[name] @ C if name in t else 0.0


def written(layer: Any, y: Tensor, u: Tensor) -> Tensor:
    """Gate, output projection, parallel adapter."""
    w, t = parts_of(layer)
    rows = (w["in_proj.weight"] + lora(t, "lora_in"))[layer.mixer.inner :] + lora(t, "lora_z")
    y = (y + t.get("state_offset_y", 0.0)) * F.silu(u @ rows.T)
    out = y @ (w["out_proj.weight"] + lora(t, "lora_out")).T
    if "parallel_adapter_up" in t:
        out = out + 0.1 * F.relu(y @ t["parallel_adapter_down"].T) @ t["parallel_adapter_up"].T
    return out


@pytest.mark.parametrize("case", CASES)
def test_mamba(case: str) -> None:
    layer = tiny.adapted("mamba", CASES[case]).get_base_model().backbone.layers[0].mixer
    u = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = written(layer, mamba(layer, u[0].double()), u[0].double())
        torch.testing.assert_close(layer(u)[0].double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_vim(case: str) -> None:
    """The backward direction is a forward one over the reversed tokens; both are averaged."""
    layer = adapted_student("vim", CASES[case]).get_base_model().layers[0].mixer
    u = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        row = u[0].double()
        y = (mamba(layer, row) + mamba(layer, row.flip(0), "_b").flip(0)) / 2
        torch.testing.assert_close(layer(u).output[0].double(), written(layer, y, row), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("where", ["prefix", "suffix", "infix", "both"])
def test_one_affix_of_a_vim_is_met_by_both_directions(where: str) -> None:
    """Three tokens among five of the row's."""
    orders = {"prefix": [5, 6, 7, 0, 1, 2, 3, 4], "suffix": [0, 1, 2, 3, 4, 5, 6, 7]}
    orders |= {"infix": [0, 5, 1, 6, 2, 7, 3, 4], "both": [5, 6, 0, 1, 2, 3, 4, 7]}
    methods = [{"name": "affix", "where": where, "dual": False}, "initial_state", "state_offset_h"]
    layer = adapted_student("vim", methods).get_base_model().layers[0].mixer
    u = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(5))
    back = [4 - token if token < 5 else token for token in reversed(orders[where])]
    with torch.no_grad():
        row = u[0].double()
        y = mamba(layer, row, order=orders[where])
        y = (y + mamba(layer, row.flip(0), "_b", order=back).flip(0)) / 2
        torch.testing.assert_close(layer(u).output[0].double(), written(layer, y, row), atol=1e-5, rtol=1e-5)


MAMBA2 = {
    "weights": ["lora_x", "lora_z", "lora_b", "lora_c", "lora_d", "lora_out", "a", "d", "bias", "conv1d"],
    "inside": ["state_offset_h", "state_offset_y", "parallel_adapter"],
    "start": ["initial_state", "affix"],
    "all": ["lora_b", "lora_c", "a", "bitfit", "additional_scan", *tiny.INSIDE, "affix"],
}


@pytest.mark.parametrize("case", MAMBA2)
def test_mamba2(case: str) -> None:
    layer = tiny.adapted("mamba2", MAMBA2[case]).get_base_model().backbone.layers[0].mixer
    u = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(layer(u)[0].double(), mamba2(layer, u[0].double()), atol=1e-5, rtol=1e-5)


def mamba2(layer: Any, u: Tensor) -> Tensor:
    """One row u (L, d): B and C pass through the convolution, a head has one decay, C is a group's."""
    w, t = parts_of(layer)
    heads, groups, state, inner = layer.mixer.heads, layer.mixer.groups, layer.mixer.state, layer.mixer.inner
    rows = w["in_proj.weight"].split([inner, inner, groups * state, groups * state, heads])
    names = ("lora_z", "lora_x", "lora_b", "lora_c", "lora_d")
    z, x, B, C, delta = (u @ (part + lora(t, name)).T for part, name in zip(rows, names, strict=True))
    put = t.get("affix", u.new_zeros(0, len(w["in_proj.weight"])))
    _, *put = put.split([inner, inner, groups * state, groups * state, heads], dim=1)
    x, B, C, delta = (torch.cat(pair) for pair in zip(put, (x, B, C, delta), strict=True))
    taps, bias = w["conv1d.weight"] + t.get("conv1d", 0.0), w["conv1d.bias"] + t.get("bitfit_conv", 0.0)
    mixed = convolved(torch.cat([x, B, C], dim=1), taps, bias)
    x, B, C = mixed.split([inner, groups * state, groups * state], dim=1)
    x, B, C = x.unflatten(1, (heads, -1)), B.unflatten(1, (groups, -1)), C.unflatten(1, (groups, -1))
    old = C
    if "additional_scan_b" in t:
        new = torch.cat([u @ t["additional_scan_b"].T, u @ t["additional_scan_c"].T], dim=1)
        new = torch.cat([new.new_zeros(len(put[0]), new.shape[1]), new])  # which the affix says nothing to
        new = convolved(new, t["additional_scan_conv"][:, None], t["additional_scan_conv_bias"])
        more = [part.unflatten(1, (groups, -1)) for part in new.chunk(2, dim=1)]
        B, C = torch.cat([B, more[0]], dim=2), torch.cat([C, more[1]], dim=2)
    dt = F.softplus(delta + w["dt_bias"] + t.get("bias", 0.0) + t.get("bitfit_dt", 0.0))
    A, D = -(w["A_log"] + t.get("a", 0.0)).exp(), w["D"] + t.get("d", 0.0)
    h, ys = torch.zeros(heads, inner // heads, B.shape[2], dtype=u.dtype), []
    if "initial_state" in t:
        h[:, :, :state] = t["initial_state"].unflatten(0, (heads, -1))
    for step in range(len(x)):
        y = []
        for head in range(heads):
            group = head * groups // heads
            push = dt[step, head] * torch.outer(x[step, head], B[step, group])
            h[head] = (dt[step, head] * A[head]).exp() * h[head] + push
            y.append(h[head] @ C[step, group] + D[head] * x[step, head])
            if "state_offset_h" in t:
                y[-1] = y[-1] + t["state_offset_h"].unflatten(0, (heads, -1))[head] @ old[step, group]
        ys.append(torch.cat(y))
    gated = (torch.stack(ys[len(x) - len(u) :]) + t.get("state_offset_y", 0.0)) * F.silu(z)
    by_group = gated.unflatten(1, (groups, -1))
    gated = (by_group * (by_group.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).flatten(1) * w[
        "norm.weight"
    ]
    out = gated @ (w["out_proj.weight"] + lora(t, "lora_out")).T
    if "parallel_adapter_up" in t:
        out = out + 0.1 * F.relu(gated @ t["parallel_adapter_down"].T) @ t["parallel_adapter_up"].T
    return out


def test_ssd_vit_reads_the_offset_with_its_scaled_c() -> None:
    """What an offset adds is proj(gate (C_t h' + y')), head by head, whatever the scans make."""
    layer = adapted_student("ssd_vit", ["state_offset_h", "state_offset_y"]).get_base_model().blocks[0].attn
    u = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        own, t = parts_of(layer)
        mixed, plain = layer.mix(u), layer.base_layer.mix(u)
        C = plain.parts["C"][0].double().unflatten(1, (2, 8)) * 8**-0.5
        offset_h = t["state_offset_h"].unflatten(0, (2, 8))
        read = torch.stack([C[:, head] @ offset_h[head].T for head in range(2)], dim=1).flatten(1)
        gate = F.silu(u[0].double() @ own["gate.weight"].T + own["gate.bias"])
        added = ((read + t["state_offset_y"]) * gate) @ own["proj.weight"].T
        torch.testing.assert_close((mixed.output - plain.output)[0].double(), added, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("where", ["prefix", "suffix", "infix", "both"])
def test_ssd_vit_begins_with_the_states_and_meets_the_affix(where: str) -> None:
    """Every token reads every other one through the decays between them, itself once: a sum over pairs."""
    orders = {"prefix": [5, 6, 7, 0, 1, 2, 3, 4], "suffix": [0, 1, 2, 3, 4, 5, 6, 7]}
    orders |= {"infix": [0, 5, 1, 6, 2, 7, 3, 4], "both": [5, 6, 0, 1, 2, 3, 4, 7]}
    order = orders[where]
    model = adapted_student("ssd_vit", ["initial_state", {"name": "affix", "where": where}])
    layer = model.get_base_model().blocks[0].attn
    u = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        (w, t), row = parts_of(layer), u[0].double()
        qkv = torch.cat([row @ w["qkv.weight"].T + w["qkv.bias"], t["affix"][:, :48]])[order]
        longer = torch.cat([qkv.new_zeros(1, 48), qkv, qkv.new_zeros(1, 48)])
        taps = w["conv1d.weight"][:, 0].T
        mixed = torch.stack([(longer[i : i + 3] * taps).sum(0) for i in range(8)]) + w["conv1d.bias"]
        C, B, x = (part.unflatten(1, (2, 8)) for part in mixed.chunk(3, dim=1))
        delta = torch.cat([row @ w["dt_proj.weight"].T, t["affix"][:, 48:]])[order]
        dt = F.softplus(delta + w["dt_proj.bias"])
        ahead, back = -w["A_log"].exp() * dt, -w["A_b_log"].exp() * dt
        first, last = (t[f"initial_state{end}"].unflatten(0, (2, 8)) for end in ("", "_b"))
        y = torch.zeros(8, 2, 8, dtype=u.double().dtype)
        for i in range(8):
            for h in range(2):
                c = C[i, h] * 8**-0.5
                for j in range(8):
                    between = ahead[j + 1 : i + 1, h].sum() if j <= i else back[i:j, h].sum()
                    y[i, h] += between.exp() * dt[j, h] * (c @ B[j, h]) * x[j, h]
                y[i, h] += ahead[: i + 1, h].sum().exp() * first[h] @ c
                y[i, h] += back[i:, h].sum().exp() * last[h] @ c
        y = torch.stack([y[order.index(token)] for token in range(5)]).flatten(1)
        gated = y * F.silu(row @ w["gate.weight"].T + w["gate.bias"])
        wanted = gated @ w["proj.weight"].T + w["proj.bias"]
        torch.testing.assert_close(layer.mix(u).output[0].double(), wanted, atol=1e-5, rtol=1e-5)
