"""FiLM and cross-attention in cross-Mamba's place: definitions in float64, cost, size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from crossed import MASK, inputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from transmamba.errors import UserError
from transmamba.layers.cross_base import Crossed, CrossMambaConfig
from transmamba.layers.cross_mamba import cross_mamba
from transmamba.layers.cross_rivals import RIVALS, of_equal_size

D, E, H = 8, 6, 2  # the width is D, as torch's attention has it


@pytest.fixture(params=tuple(RIVALS))
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(randomise: Callable[..., None]) -> Callable[..., Crossed]:
    def build(mode: str, gate: float = 0.7) -> Crossed:
        config = CrossMambaConfig(mode=mode, num_heads=H, state_size=3, width=D)  # type: ignore[arg-type]
        module = cross_mamba(D, E, config).double()
        randomise(module, seed=3)
        torch.nn.init.constant_(module.scale, gate)
        return module

    return build


def rms(norm: Any, u: Tensor) -> Tensor:
    return u / (u.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def by_film(m: Any, u: Tensor, words: Tensor) -> Tensor:
    """(N, D), token by token and channel by channel, of the normed prompt (M, E)."""
    mean = sum(words) / len(words) if len(words) else torch.zeros(E, dtype=torch.float64)
    made = m.film.weight @ mean + m.film.bias
    found = torch.empty(len(u), D, dtype=torch.float64)
    for n, token in enumerate(u):
        x = m.in_proj.weight @ token + m.in_proj.bias
        for channel in range(D):
            found[n, channel] = (1 + made[channel]) * x[channel] + made[D + channel]
    return found


def by_attention(m: Any, u: Tensor, words: Tensor) -> Tensor:
    """torch's own module, of one row's words alone: nothing is masked there."""
    if not len(words):
        return torch.zeros(len(u), D, dtype=torch.float64)
    theirs = torch.nn.MultiheadAttention(D, H, kdim=E, vdim=E, batch_first=True).double()
    state = {f"{name}_proj_weight": getattr(m, f"{name}_proj").weight for name in "qkv"}
    state["in_proj_bias"] = torch.cat([getattr(m, f"{name}_proj").bias for name in "qkv"])
    state |= {"out_proj.weight": torch.eye(D).double(), "out_proj.bias": torch.zeros(D).double()}
    theirs.load_state_dict(state)
    return theirs(u[None], words[None], words[None], need_weights=True)[0][0]


DEFINITIONS = {"film": by_film, "attention": by_attention}


def test_outputs_equal_the_definition(mode: str, make: Callable[..., Crossed]) -> None:
    module, (vision, language) = make(mode), inputs(dim=D, language=E)
    found: list[Tensor] = []
    with torch.no_grad():
        for row in range(len(vision)):
            u = rms(module.norm, vision[row])
            y = DEFINITIONS[mode](module, u, rms(module.norm_language, language[row][MASK[row]]))
            z = u @ module.gate.weight.T + module.gate.bias
            added = rms(module.norm_y, y * z * torch.sigmoid(z)) @ module.proj.weight.T
            found.append(vision[row] + torch.tanh(module.scale) * added)
        made = module(vision, language, MASK)
    assert (made - vision)[:3].std() > 0.1, "a test of nothing"
    torch.testing.assert_close(made, torch.stack(found), rtol=1e-10, atol=1e-10)


def test_attention_leaves_a_row_without_prompt_as_it_is(make: Callable[..., Crossed]) -> None:
    vision, language = inputs(dim=D, language=E)
    assert torch.equal(make("attention")(vision, language, MASK)[3], vision[3])


def cost(mode: str, tokens: int, words: int) -> int:
    module = cross_mamba(16, 8, CrossMambaConfig(mode=mode, num_heads=2, width=16))  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mask = torch.ones(1, words, dtype=torch.bool)
        module(torch.randn(1, tokens, 16), torch.randn(1, words, 8), mask)
    return counter.get_total_flops()


def test_film_costs_tokens_and_attention_tokens_times_words() -> None:
    def both(mode: str, base: int = 64, more: int = 128) -> int:
        """What both lengths cost together beyond what each costs alone."""
        each = cost(mode, more, base) + cost(mode, base, more)
        return cost(mode, more, more) - each + cost(mode, base, base)

    assert both("film") == 0
    assert both("attention") == 2 * 2 * 16 * 64 * 64, "scores and values, two operations each"


@pytest.mark.parametrize(
    "options", ({}, {"state_size": 16}, {"num_heads": 6, "conv_kernel": 1}), ids=("usual", "narrow", "heads")
)
@pytest.mark.parametrize("sizes", ((192, 576), (256, 576), (1024, 4096)), ids=str)
def test_rivals_have_as_many_parameters_as_mode_state(sizes: tuple[int, int], options: Any) -> None:
    """Within 2 %; of the study's own sizes, (256, 576), and of LLaVA-1.5-7B's."""
    if sizes[0] % options.get("num_heads", 4):
        sizes = (sizes[0] // 6 * 6, sizes[1])
    with torch.device("meta"):
        count = {
            mode: sum(
                p.numel() for p in cross_mamba(*sizes, CrossMambaConfig(mode=mode, **options)).parameters()
            )
            for mode in ("state", *RIVALS)
        }
    for mode in RIVALS:
        assert count[mode] == pytest.approx(count["state"], rel=0.02), (mode, count)


def test_a_width_that_is_written_stays() -> None:
    written = CrossMambaConfig(mode="film", width=12)
    assert of_equal_size(256, 576, written) is written
    assert of_equal_size(256, 576, CrossMambaConfig()).width is None
    with pytest.raises(UserError, match="width is 10; write a multiple of num_heads, 4"):
        cross_mamba(16, E, CrossMambaConfig(mode="attention", width=10))
