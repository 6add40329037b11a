"""Mamba's mixer (https://arxiv.org/abs/2312.00752) in transformers: Mamba, Falcon-Mamba and Jamba."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from transmamba_kernels import selective_scan, selective_state_update

from ...config.registry import FAMILIES
from ...core.output import Context
from .cached import convolved, padded, states_of, steps
from .family import Family, refuse_packed, shapes_of
from .inside import Inside
from .mixer import Mixer, Place
from .starting import stilled


def places_of(inner: int, rank: int, state: int, suffix: str = "") -> dict[str, tuple[Place, ...]]:
    """Of one direction: those of x_proj, dt_proj and the convolution; `suffix` is their modules'."""
    x_proj, dt_proj, conv = f"x_proj{suffix}.weight", f"dt_proj{suffix}", f"conv1d{suffix}"
    biases = (Place(f"{conv}.bias", suffix=suffix), Place(f"{dt_proj}.bias", suffix=suffix))
    return {
        "x_proj": (Place(x_proj, suffix=suffix),),
        "d": (Place(x_proj, 0, rank, suffix),),
        "b": (Place(x_proj, rank, rank + state, suffix),),
        "c": (Place(x_proj, rank + state, suffix=suffix),),
        "dt_proj": (Place(f"{dt_proj}.weight", suffix=suffix),),
        "dt_bias": (Place(f"{dt_proj}.bias", suffix=suffix),),
        "conv": (Place(f"{conv}.weight", suffix=suffix),),
        "biases": biases,
    }


def projections_of(inner: int) -> dict[str, tuple[Place, ...]]:
    """What is read of the stream into x and z, `inner` channels each, and written to it."""
    return {
        "in": (Place("in_proj.weight"),),
        "x": (Place("in_proj.weight", 0, inner),),
        "z": (Place("in_proj.weight", inner),),
        "out": (Place("out_proj.weight"),),
    }


@FAMILIES.register("mamba")
@dataclass(frozen=True)
class Mamba(Family):
    classes: ClassVar[tuple[str, ...]] = ("transformers.models.mamba.modeling_mamba.MambaMixer",)
    counts_states: ClassVar[str | None] = "ssm_state_size"

    def describe(self, module: Any) -> Mixer:
        inner, rank, state = module.intermediate_size, module.time_step_rank, module.ssm_state_size
        shapes = shapes_of(module)
        places = places_of(inner, rank, state)
        places["biases"] = tuple(place for place in places["biases"] if place.path in shapes)
        return Mixer(
            kind="a Mamba mixer",
            width=module.hidden_size,
            inner=inner,
            state=state,
            rank=rank,
            taps=module.conv_kernel_size,
            places=places
            | projections_of(inner)
            | {
                "a": (Place("A_log"),),
                "skip": (Place("D"),),
            },
            shapes=shapes,
            projected=2 * inner,
            counts_states=self.counts_states,
            config_key="state_size",
        )

    def select(self, module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """delta before its projection (B, L, R), B and C (B, L, N), of x (B, L, D)."""
        sizes = [module.time_step_rank, module.ssm_state_size, module.ssm_state_size]
        delta, B, C = module.x_proj(x).split(sizes, dim=-1)
        return delta, B, C

    def run(
        self,
        module: Any,
        inside: Inside,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, L, d) -> (B, L, d). A cache's state is read by calls of several tokens too."""
        refuse_packed(kwargs)
        length = hidden_states.shape[1]
        conv_state, state = states_of(module, cache_params)
        projected = module.in_proj(padded(hidden_states, attention_mask))
        x, z = projected.chunk(2, dim=-1)
        opened = inside.prefix(x, Context(mask=attention_mask)) if state is None else None
        if opened is not None:
            attention_mask = opened.mask(attention_mask)
            x = opened.place(x, inside.affixes[""][1][:, : x.shape[-1]])
        x = convolved(module, x.transpose(1, 2), cache_params, conv_state).transpose(1, 2)
        x = padded(x, attention_mask)
        delta, B, C = self.select(module, x)
        delta = stilled(inside, F.linear(delta, module.dt_proj.weight), attention_mask)
        A, D, bias = -module.A_log.float().exp(), module.D.float(), module.dt_proj.bias.float()
        if steps(length, state):
            assert state is not None
            step = (x[:, 0], delta[:, 0], A, B[:, 0], C[:, 0], D)
            y = selective_state_update(state, *step, delta_bias=bias, delta_softplus=True)[:, None]
        else:
            if state is None:
                state = inside.start_of(len(x), (x.shape[-1],), B.shape[-1])
            scan = dict(delta_bias=bias, delta_softplus=True, initial_state=state)
            y, state = selective_scan(x, delta, A, B, C, D, return_final_state=True, **scan)
            if cache_params is not None:
                cache_params.update_recurrent_state(state, module.layer_idx)
        if opened is not None:
            y, C = opened.drop(y), opened.drop(C)
        read = inside.read(C)
        y = inside.shifted(y if read is None else y + read)
        return inside.projected(module.out_proj, (y * F.silu(z)).to(hidden_states.dtype))


@FAMILIES.register("mamba_normed")
@dataclass(frozen=True)
class NormedMamba(Mamba):
    """With norms on delta, B and C, which new states would change."""

    classes: ClassVar[tuple[str, ...]] = (
        "transformers.models.falcon_mamba.modeling_falcon_mamba.FalconMambaMixer",
        "transformers.models.jamba.modeling_jamba.JambaMambaMixer",
    )
    counts_states: ClassVar[str | None] = None

    def select(self, module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        delta, B, C = super().select(module, x)
        return module.dt_layernorm(delta), module.b_layernorm(B), module.c_layernorm(C)
