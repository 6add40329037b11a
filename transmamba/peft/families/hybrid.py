"""The language student's Mamba-2 mixers: that of training, and that of the code that it is saved with. Both
have the tensors of transformers' Bamba, so that one's adapter is the other's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transmamba_kernels import causal_conv1d, ssd_scan

from ...config.registry import FAMILIES
from ...core.output import Context, wide
from ...errors import UserError
from ...layers.mixed import Mixed
from .family import Family, shapes_of
from .inside import Inside
from .mamba2 import places_of
from .mixer import Mixer, Place
from .starting import passed, started_heads, step_sizes


@FAMILIES.register("hybrid")
@dataclass(frozen=True)
class Hybrid(Family):
    classes: ClassVar[tuple[str, ...]] = ("transmamba.students.hybrid_lm.mixer.HybridMixer",)

    def describe(self, module: Any) -> Mixer:
        shapes, bc = shapes_of(module), module.groups * module.states
        found = [Place(path) for path in ("conv1d.bias", "dt_bias") if path in shapes]
        return Mixer(
            kind="a language student's Mamba-2 mixer",
            width=module.in_proj.in_features,
            inner=module.inner,
            state=module.states,
            heads=module.heads,
            groups=module.groups,
            taps=module.conv1d.kernel_size[0],
            places=places_of(module.inner, bc) | {"biases": tuple(found)},
            shapes=shapes,
            projected=shapes["in_proj.weight"][0],
            counts_states=None if module.normed else "states",
            config_key="mamba_d_state",
        )

    def run(self, module: Any, inside: Inside, u: Tensor, context: Context, by_head: bool = False) -> Mixed:
        """u (B, L, d) -> `Mixed`, as the mixer's own forward."""
        real = None if context.mask is None else context.mask.unsqueeze(-1)
        z, mixed, delta = module._projected(u if real is None else u.masked_fill(~real, 0))
        opened = inside.prefix(u, context)
        if opened is not None:
            put = inside.widened(module.inner, module.groups, module.states, module.heads)
            longer = opened.place(torch.cat([mixed, delta], dim=-1), put[:, module.inner :])
            mixed, delta = longer.split([module.conv_dim, module.heads], dim=-1)
            context = opened.context(context)
            real = None if context.mask is None else context.mask.unsqueeze(-1)
        mixed = module._normalised(mixed) if module.normed else mixed
        weight, bias, segments = module.conv1d.weight[:, 0], module.conv1d.bias, context.segments
        mixed = causal_conv1d(mixed, weight, bias, activation="silu", seq_idx=segments)
        mixed = mixed if real is None else mixed.masked_fill(~real, 0)
        bc = module.groups * module.states
        x, B, C = mixed.split([module.inner, bc, bc], dim=-1)
        grouped = C.unflatten(-1, (module.groups, module.states))
        A, D = -wide(module.A_log).exp(), wide(module.D)
        y = ssd_scan(
            x.unflatten(-1, (module.heads, module.head_dim)),
            delta,
            A,
            B.unflatten(-1, (module.groups, module.states)),
            grouped,
            D=D,
            delta_bias=wide(module.dt_bias),
            delta_softplus=True,
            seq_idx=segments,
        )
        if inside.begins:
            sums = passed(step_sizes(delta, module.dt_bias), context.mask, segments)
            first = started_heads(inside, grouped, sums, A)
            y = y if first is None else y + first
        if opened is not None:
            y, grouped, B, C, delta = (opened.drop(part) for part in (y, grouped, B, C, delta))
        read = inside.read_heads(grouped, module.heads)
        values = module.norm(inside.shifted((y if read is None else y + read).flatten(2)), z)
        parts = {"B": B, "C": C, "values": values}
        if by_head:
            parts |= module._by_head(B, C, delta, A, D)
        return Mixed(inside.projected(module.out_proj, values), parts=parts)


@FAMILIES.register("hybrid_own")
@dataclass(frozen=True)
class HybridOwn(Hybrid):
    """`trust_remote_code`: the file stands in the student's folder, its functions beside its class."""

    classes: ClassVar[tuple[str, ...]] = ("*.mixer_transmamba.HybridMamba2",)

    def run(self, module: Any, inside: Inside, u: Tensor, shared: Any) -> Tensor:  # type: ignore[override]
        """u (B, T, d) -> (B, T, d), as the mixer's own forward; the cache is moved on."""
        if not hasattr(module, "scanned"):
            raise UserError(
                "this folder's code is of an earlier transmamba, which no adapter can be put on; save the "
                "student anew (transmamba.load_student, save_student)"
            )
        padding = ~shared.real.unsqueeze(-1)
        held = {} if shared.cache is None else shared.cache.held[module.layer]
        bc = module.groups * module.states
        projected = module.in_proj(u.masked_fill(padding, 0))
        z, opened = projected[..., : module.inner], None
        if not held:
            opened = inside.prefix(u, Context(mask=shared.real))
        if opened is not None:
            put = inside.widened(module.inner, module.groups, module.states, module.heads)
            projected, padding = (
                opened.place(projected, put),
                opened.place(padding, put.new_zeros(len(put), 1)),
            )
        _, mixed, dt = projected.split([module.inner, module.inner + 2 * bc, module.heads], dim=-1)
        mixed, before = module._convolved(module._normalised(mixed), held.get("before"))
        x, B, C = mixed.masked_fill(padding, 0).split([module.inner, bc, bc], dim=-1)
        x = wide(x).unflatten(-1, (module.heads, module.size))
        step, state = F.softplus(wide(dt) + wide(module.dt_bias)), held.get("state")
        first = None if held else inside.start_of(len(u), (module.heads, module.size), module.states)
        if first is not None:
            state, step = wide(first), step.masked_fill(padding, 0)
        y, state = module.scanned(x, step, B, C, state)
        if shared.cache is not None:
            shared.cache.held[module.layer] = {"before": before, "state": state}
        y = y + wide(module.D)[:, None] * x
        if opened is not None:
            y, C = opened.drop(y), opened.drop(C)
        read = inside.read_heads(wide(C).unflatten(-1, (module.groups, module.states)), module.heads)
        y = (y if read is None else y + read).flatten(2)
        return inside.projected(module.out_proj, module.norm(inside.shifted(y).to(u.dtype), z))
