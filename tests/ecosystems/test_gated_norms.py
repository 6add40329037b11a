"""transformers' gated norm is one of each group, in the installed version and in classes as older ones have
them, against float64."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import transmamba  # noqa: F401  # mends what is older
from transmamba.ecosystems import gated_norms
from transmamba.ecosystems.gated_norms import MIXERS, mend
from transmamba.ecosystems.hooks import REGISTER_IN

CHANNELS, GROUPS = 12, 3
CONFIGS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8},
    "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 2, "state_size": 8},
}


def older() -> tuple[type[nn.Module], type[nn.Module]]:
    """A mixer and its norm of all channels together, classes of their own for each test."""

    class Norm(nn.Module):
        def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(hidden_size)), eps

        def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
            gated = hidden_states.float() if gate is None else hidden_states.float() * F.silu(gate.float())
            made = gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return self.weight * made.to(hidden_states.dtype)

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.intermediate_size, self.n_groups, self.norm = CHANNELS, GROUPS, Norm(CHANNELS)

        def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
            return self.norm(hidden_states, gate)

    return Mixer, Norm


def by_group(x: Tensor, z: Tensor | None, weight: Tensor, groups: int, eps: float) -> Tensor:
    """Group by group, in float64."""
    gated = x.double() if z is None else x.double() * (z.double() / (1 + (-z.double()).exp()))
    parts = [part / (part.pow(2).mean(-1, keepdim=True) + eps).sqrt() for part in gated.chunk(groups, dim=-1)]
    return torch.cat(parts, dim=-1) * weight.double()


def drawn(*shape: int) -> Tensor:
    # groups of unlike sizes: by all channels together they come out otherwise
    return torch.randn(*shape) * torch.linspace(0.2, 3, shape[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [True, False])
def test_an_older_mixer_norms_each_group(gated: bool, dtype: torch.dtype) -> None:
    Mixer, Norm = older()
    before = Mixer()
    before.norm.weight.data.uniform_(0.5, 2)
    assert mend(Mixer, Norm)
    x, z = drawn(2, 5, CHANNELS).to(dtype), drawn(2, 5, CHANNELS).to(dtype) if gated else None
    eps, weight = before.norm.variance_epsilon, before.norm.weight
    expected = by_group(x, z, weight, GROUPS, eps)
    after = Mixer()
    after.load_state_dict(before.state_dict())
    close = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(after.norm(x, z).double(), expected, rtol=close, atol=close)  # by itself
    for mixer in (before, copy.deepcopy(before)):  # one that was there before, too
        found = mixer(x, z)
        torch.testing.assert_close(found.double(), expected, rtol=close, atol=close)
    assert (by_group(x, z, weight, 1, eps) - expected).abs().max() > 0.1


def test_it_is_mended_once_and_what_is_newer_not_at_all() -> None:
    Mixer, Norm = older()
    assert mend(Mixer, Norm)
    forward = Norm.forward
    assert not mend(Mixer, Norm)
    assert Norm.forward is forward

    class Newer(Norm):
        def __init__(self, hidden_size: int, group_size: int, eps: float = 1e-6) -> None:
            super().__init__(hidden_size, eps)
            self.group_size = group_size

    Mixer, Norm = older()
    assert not mend(Mixer, Newer)


def test_a_norm_of_no_such_mixer_stays_one_of_all_channels() -> None:
    Mixer, Norm = older()
    alone, x = Norm(CHANNELS), drawn(4, CHANNELS)
    before = alone(x)
    mend(Mixer, Norm)
    assert torch.equal(alone(x), before)


@pytest.mark.parametrize("model", MIXERS)
def test_the_installed_mixers_norm_each_group(model: str) -> None:
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    kind = module.__dict__[
        {"bamba": "BambaConfig", "granitemoehybrid": "GraniteMoeHybridConfig"}.get(model, "Mamba2Config")
    ]
    layers: dict[str, Any] = {"layer_types": ["mamba"]} if model == "granitemoehybrid" else {}
    config = kind(hidden_size=32, expand=1, mamba_expand=1, num_hidden_layers=1, **layers, **CONFIGS[model])
    mixer = getattr(module, MIXERS[model][0])(config, 0).eval()
    seen: list[tuple[Any, ...]] = []
    mixer.norm.register_forward_hook(lambda norm, given, found: seen.append((*given, found)))
    with torch.no_grad():
        mixer.norm.weight.uniform_(0.5, 2)
        mixer(drawn(2, 6, 32))
    (x, z, found), norm = seen[0], mixer.norm
    expected = by_group(x, z, norm.weight, mixer.n_groups, norm.variance_epsilon)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_each_is_mended_where_it_is_imported() -> None:
    told = {library for library, modules in REGISTER_IN.items() if gated_norms.__name__ in modules}
    assert told == {f"transformers.models.{model}.modeling_{model}" for model in MIXERS}
