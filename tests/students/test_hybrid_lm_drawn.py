"""Mamba-2 layers that do not begin as attention: what is drawn, what is still the teacher's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hybrids import hybrid, llama, qwen3, texts

from transmamba import UserError, adapt_teacher, convert
from transmamba.core.batch import Batch

PROJECTED = ("z", "x", "B", "C", "dt")


def started(model: Any, mixers: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    text = texts(4, 20)
    batch = Batch({"text": text}, {}, torch.arange(4), {"samples": 4})
    return hybrid(model, 1, mixers=mixers, calibration=[batch])


@pytest.mark.parametrize("mixers", ["mamba2", "random"])
def test_what_is_no_projection_is_mamba_2_s(mixers: str) -> None:
    """Of many heads: the ranges of Mamba-2's code are filled, from end to end."""
    mixer = started(llama(hidden_size=256, num_attention_heads=64, head_dim=4), mixers).layer(0).mamba
    steps, rates = F.softplus(mixer.dt_bias.detach()), mixer.A_log.detach().exp()
    assert 1e-3 <= steps.min() < 2e-3 and 0.05 < steps.max() <= 0.1001
    assert abs(float(steps.log().mean().exp()) - 0.01) < 0.003, "as likely of each size"
    assert 1 <= rates.min() < 2 and 15 < rates.max() <= 16 and abs(float(rates.mean()) - 8.5) < 1.5
    assert (mixer.D == 1).all() and (mixer.norm.weight == 1).all()
    taps = mixer.conv1d.weight.detach()
    assert taps.abs().max() <= 0.5 and abs(float(taps.std()) - 0.5 / 3**0.5) < 0.01, "uniform, four taps"


@pytest.mark.parametrize("teacher", [llama, lambda: llama(attention_bias=True), qwen3])
def test_which_projections_are_the_teacher_s(teacher: Any) -> None:
    """In all three x, B, C and the output are the same; in a random one nothing of the mixer is, everything
    else is."""
    model = teacher()
    usual, mamba2, random = (started(model, mixers) for mixers in ("attention", "mamba2", "random"))
    like, drawn = (student.layer(0).mamba for student in (mamba2, random))
    for part in PROJECTED:
        same = torch.equal(like.rows(part), usual.layer(0).mamba.rows(part))
        assert same == (part in "xBC"), part
        assert not torch.equal(drawn.rows(part), like.rows(part)) or part in ("z", "dt")
    assert torch.equal(like.out_proj.weight, usual.layer(0).mamba.out_proj.weight)
    assert not torch.equal(drawn.out_proj.weight, like.out_proj.weight)
    if like.normed:
        assert torch.equal(like.B_norm.weight, usual.layer(0).mamba.B_norm.weight)
        assert (drawn.B_norm.weight == 1).all()
    elsewhere = [name for name in usual.state_dict() if ".mamba." not in name]
    for name in elsewhere:
        assert torch.equal(random.state_dict()[name], usual.state_dict()[name]), name
    if like.conv1d.bias is not None and not like.normed and model.config.attention_bias:
        wanted = model.model.layers[0].self_attn.v_proj.bias
        assert torch.equal(like.conv1d.bias[: wanted.numel()][:8], wanted[:8])


def test_it_is_reported_and_follows_from_the_seed() -> None:
    _, report = convert(adapt_teacher(qwen3()), "hybrid_lm", attention_layers=[1], mixers="random")
    dropped = {drop.source for drop in report.dropped if drop.why == "student.mixers is random"}
    assert dropped == {
        f"blocks.{k}.attention.{name}.weight"
        for k in (0, 2)
        for name in ("q", "k", "v", "o", "q_norm", "k_norm")
    }
    one, again, other = (started(llama(), "random", seed).state_dict() for seed in (0, 0, 1))
    name = "model.layers.0.mamba.in_proj.weight"
    assert torch.equal(one[name], again[name]) and not torch.equal(one[name], other[name])


@pytest.mark.parametrize("option", [dict(half_life=4), dict(half_life="fitted"), dict(conv_tap=1)])
def test_what_it_would_not_follow_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="mixers: mamba2, whose decays and convolutions are drawn"):
        hybrid(llama(), 1, mixers="mamba2", **option)
