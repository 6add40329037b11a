"""Mamba-2's mixer (https://arxiv.org/abs/2405.21060) in transformers, and those that hybrids have of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from transmamba_kernels import compat, ssd_state_update

from ...config.registry import FAMILIES
from ...core.output import Context
from .cached import convolved, padded, states_of, steps
from .family import Family, refuse_packed, shapes_of
from .inside import Inside
from .mixer import Mixer, Place
from .starting import limited, passed, started_heads


def places_of(inner: int, bc: int) -> dict[str, tuple[Place, ...]]:
    """Rows of in_proj are z, x, B, C and delta; `bc` counts those of B, which are as many as those of C."""
    edges = [0, inner, 2 * inner, 2 * inner + bc, 2 * inner + 2 * bc]
    z, x, b, c = (Place("in_proj.weight", *pair) for pair in itertools.pairwise(edges))
    delta = Place("in_proj.weight", edges[-1])
    return {
        "in": (Place("in_proj.weight"),),
        "z": (z,),
        "x": (x,),
        "b": (b,),
        "c": (c,),
        "d": (delta,),
        "dt_proj": (delta,),
        "x_proj": (Place("in_proj.weight", edges[2]),),
        "out": (Place("out_proj.weight"),),
        "a": (Place("A_log"),),
        "skip": (Place("D"),),
        "dt_bias": (Place("dt_bias"),),
        "conv": (Place("conv1d.weight"),),
    }


STATE_KEYS = {"Mamba2Mixer": "state_size", "NemotronHMamba2Mixer": "ssm_state_size"}


@FAMILIES.register("mamba2")
@dataclass(frozen=True)
class Mamba2(Family):
    classes: ClassVar[tuple[str, ...]] = (
        "transformers.models.mamba2.modeling_mamba2.Mamba2Mixer",
        "transformers.models.bamba.modeling_bamba.BambaMixer",
        "transformers.models.granitemoehybrid.modeling_granitemoehybrid.GraniteMoeHybridMambaLayer",
        "transformers.models.nemotron_h.modeling_nemotron_h.NemotronHMamba2Mixer",
        "transformers.models.zamba2.modeling_zamba2.Zamba2MambaMixer",
    )
    counts_states: ClassVar[str | None] = "ssm_state_size"

    def describe(self, module: Any) -> Mixer:
        shapes, bc = shapes_of(module), module.n_groups * module.ssm_state_size
        places = places_of(module.intermediate_size, bc)
        found = [Place(path) for path in ("conv1d.bias", "dt_bias") if path in shapes]
        return Mixer(
            kind="a Mamba-2 mixer",
            width=module.hidden_size,
            inner=module.intermediate_size,
            state=module.ssm_state_size,
            heads=module.num_heads,
            groups=module.n_groups,
            taps=module.conv_kernel_size,
            places=places | {"biases": tuple(found)},
            shapes=shapes,
            projected=shapes["in_proj.weight"][0],
            counts_states=self.counts_states,
            config_key=STATE_KEYS.get(type(module).__name__, "mamba_d_state"),
        )

    def project(self, module: Any, hidden: Tensor) -> Tensor:
        return module.in_proj(hidden)

    def gate(self, module: Any, y: Tensor, z: Tensor) -> Tensor:
        return module.norm(y, z)

    def run(
        self,
        module: Any,
        inside: Inside,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, L, d) -> (B, L, d). `seq_idx` (B, L) keeps packed rows apart."""
        length = hidden_states.shape[1]
        inner, heads, groups = module.intermediate_size, module.num_heads, module.n_groups
        bc = groups * module.ssm_state_size
        conv_state, state = states_of(module, cache_params)
        projected = self.project(module, padded(hidden_states, attention_mask))
        seq_idx, z = kwargs.pop("seq_idx", None), projected[..., :inner]
        if seq_idx is None:
            refuse_packed(kwargs)
        opened = None
        if state is None:
            opened = inside.prefix(projected, Context(mask=attention_mask, segments=seq_idx))
        if opened is not None:
            attention_mask, seq_idx = opened.mask(attention_mask), opened.segments(seq_idx)
            states = inner, groups, module.ssm_state_size, heads
            projected = opened.place(projected, inside.widened(*states))
        _, xBC, delta = projected.split([inner, inner + 2 * bc, heads], dim=-1)
        xBC = convolved(module, xBC.transpose(1, 2), cache_params, conv_state, seq_idx).transpose(1, 2)
        x, B, C = padded(xBC, attention_mask).split([inner, bc, bc], dim=-1)
        x = x.unflatten(-1, (heads, -1))
        B, C = B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1))
        A, D, bias = -module.A_log.float().exp(), module.D, module.dt_bias
        if steps(length, state):
            assert state is not None
            step = (x[:, 0], delta[:, 0], A, B[:, 0], C[:, 0], D)
            y = ssd_state_update(state, *step, delta_bias=bias, delta_softplus=True)[:, None]
        else:
            if state is None and seq_idx is None:
                state = inside.start_of(len(x), tuple(x.shape[2:]), B.shape[-1])
            sizes: dict[str, Any] = dict(dt_bias=bias, dt_softplus=True, dt_limit=module.time_step_limit)
            if inside.begins:
                delta, sizes = limited(delta, bias, module.time_step_limit, attention_mask), {}
            made: Any = compat.mamba_chunk_scan_combined(
                x, delta, A, B, C, module.chunk_size, D,
                initial_states=state,
                seq_idx=seq_idx,
                return_final_states=True,
                **sizes,
            )  # fmt: skip
            y, state = made
            if cache_params is not None:
                cache_params.update_recurrent_state(state, module.layer_idx)
        if seq_idx is not None and inside.begins:
            first = started_heads(inside, C, passed(delta, attention_mask, seq_idx), A)
            y = y if first is None else y + first
        if opened is not None:
            y, C = opened.drop(y), opened.drop(C)
        read = inside.read_heads(C, heads)
        y = (y if read is None else y + read).flatten(2)
        gated = self.gate(module, inside.shifted(y), z)
        return inside.projected(module.out_proj, gated.to(hidden_states.dtype))


@FAMILIES.register("falcon_h1")
@dataclass(frozen=True)
class FalconH1(Mamba2):
    """With multipliers around in_proj, one a row, and with or without the gated norm."""

    classes: ClassVar[tuple[str, ...]] = ("transformers.models.falcon_h1.modeling_falcon_h1.FalconH1Mixer",)
    counts_states: ClassVar[str | None] = None

    def project(self, module: Any, hidden: Tensor) -> Tensor:
        return module.in_proj(hidden * module.ssm_in_multiplier) * module.mup_vector

    def gate(self, module: Any, y: Tensor, z: Tensor) -> Tensor:
        if not module.mamba_rms_norm:
            return y * F.silu(z)
        # transformers before 5.23 mixes the rows of a batch where each has one token
        normed: Tensor = module.norm(y.flatten(0, 1), z.flatten(0, 1))
        return normed.view_as(y)
