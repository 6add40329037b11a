"""The mixers of our student `sequence`, whose rows are whole: Mamba, and the language student's Mamba-2
called without a context. Its S4D layers, which choose nothing by their input, are not adapted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from transmamba_kernels import causal_conv1d, selective_scan

from ...config.registry import FAMILIES
from ...core.output import Context, wide
from ...layers.mixed import Mixed
from .family import Family, shapes_of
from .hybrid import Hybrid
from .inside import Inside
from .mamba1 import places_of, projections_of
from .mixer import Mixer, Place

NO_CONTEXT = Context()


@FAMILIES.register("sequence_mamba2")
@dataclass(frozen=True)
class SequenceMamba2(Hybrid):
    """The student's shape, which it is saved with, says how many states all its layers have: none more."""

    classes: ClassVar[tuple[str, ...]] = ("transmamba.students.sequence.layers.Mamba2",)

    def describe(self, module: Any) -> Mixer:
        mixer = super().describe(module)
        return replace(mixer, kind="a Mamba-2 mixer of points", counts_states=None, config_key=None)

    def run(
        self,
        module: Any,
        inside: Inside,
        u: Tensor,
        context: Context = NO_CONTEXT,
        by_head: bool = False,
    ) -> Mixed:
        return super().run(module, inside, u, context, by_head)


@FAMILIES.register("sequence_mamba")
@dataclass(frozen=True)
class SequenceMamba(Family):
    classes: ClassVar[tuple[str, ...]] = ("transmamba.layers.mamba1.SelectiveMixer",)

    def describe(self, module: Any) -> Mixer:
        inner = module.inner
        return Mixer(
            kind="a Mamba mixer of points",
            width=module.in_proj.in_features,
            inner=inner,
            state=module.d_state,
            rank=module.rank,
            taps=module.conv1d.kernel_size[0],
            places=places_of(inner, module.rank, module.d_state)
            | projections_of(inner)
            | {
                "a": (Place("A_log"),),
                "skip": (Place("D"),),
            },
            shapes=shapes_of(module),
            projected=2 * inner,
        )

    def run(self, module: Any, inside: Inside, u: Tensor) -> Mixed:
        """u (B, L, d) -> `Mixed`, as the mixer's own forward."""
        x, z = module.in_proj(u).chunk(2, dim=-1)
        opened = inside.prefix(u, Context())
        if opened is not None:
            x = opened.place(x, inside.affixes[""][1][:, : x.shape[-1]])
        x = causal_conv1d(x, module.conv1d.weight[:, 0], module.conv1d.bias, activation="silu")
        delta, B, C = module.x_proj(x).split([module.rank, module.d_state, module.d_state], dim=-1)
        y: Any = selective_scan(
            x,
            F.linear(delta, module.dt_proj.weight),
            -wide(module.A_log).exp(),
            B,
            C,
            D=wide(module.D),
            delta_bias=wide(module.dt_proj.bias),
            delta_softplus=True,
            initial_state=inside.start_of(len(x), (x.shape[-1],), module.d_state),
        )
        if opened is not None:
            y, B, C = (opened.drop(part) for part in (y, B, C))
        read = inside.read(C)
        y = inside.shifted(y if read is None else y + read)
        return Mixed(inside.projected(module.out_proj, y * F.silu(z)), parts={"B": B, "C": C})
