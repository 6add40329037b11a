"""Vision Mamba's mixer of two directions (https://arxiv.org/abs/2401.09417): that of our student `vim`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from transmamba_kernels import bidirectional_conv1d, bidirectional_scan

from ...config.registry import FAMILIES
from ...layers.insertion import Insertion
from ...layers.mixed import Mixed
from .family import Family, shapes_of
from .inside import Inside
from .mamba1 import places_of, projections_of
from .mixer import Mixer, Place
from .starting import both, passed, started, step_sizes

DIRECTIONS = ("", "_b")


@FAMILIES.register("bidirectional")
@dataclass(frozen=True)
class Bidirectional(Family):
    """Each direction has its own convolution, delta, B, C, A and D, and so its own tensors of an adapter."""

    classes: ClassVar[tuple[str, ...]] = ("transmamba.layers.bidirectional.BidirectionalMamba",)
    doors: ClassVar[tuple[str, ...]] = ("written",)

    def describe(self, module: Any) -> Mixer:
        inner, rank, state = module.inner, module.rank, module.d_state
        ahead, back = (places_of(inner, rank, state, suffix) for suffix in DIRECTIONS)
        return Mixer(
            kind="a bidirectional Mamba mixer",
            width=module.in_proj.in_features,
            inner=inner,
            state=state,
            rank=rank,
            taps=module.conv1d.kernel_size[0],
            directions=DIRECTIONS,
            places={what: ahead[what] + back[what] for what in ahead}
            | projections_of(inner)
            | {
                "a": (Place("A_log"), Place("A_b_log", suffix="_b")),
                "skip": (Place("D"), Place("D_b", suffix="_b")),
            },
            shapes=shapes_of(module),
            causal=False,
            projected=2 * inner,
            counts_states="d_state",
            config_key="d_state",
        )

    def written(self, module: Any, inside: Inside) -> Tensor:
        return module.written()

    def run(
        self,
        module: Any,
        inside: Inside,
        u: Tensor,
        *,
        branches: bool = False,
        tokens: Tensor | None = None,
    ) -> Mixed:
        """u (B, L, d) -> `Mixed`, as the mixer's own forward."""
        x, z = module.in_proj(u).chunk(2, dim=-1)
        z = z if module.gate_bias is None else z + module.gate_bias
        conv, conv_b = module.conv1d, module.conv1d_b
        taps = conv.weight[:, 0], conv.bias, conv_b.weight[:, 0], conv_b.bias
        opened = opened_for(inside, x)
        if opened is None:
            x_f, x_b = bidirectional_conv1d(x, *taps, activation="silu")
        else:
            longer = [way.place(x, tokens[:, : x.shape[-1]]) for way, tokens in opened]
            x_f, x_b = bidirectional_conv1d(longer[0], *taps, activation="silu")
            if len(longer) == 2:
                _, x_b = bidirectional_conv1d(longer[1], *taps, activation="silu")
        (delta_f, B_f, C_f), (delta_b, B_b, C_b) = module._selected(x_f, ""), module._selected(x_b, "_b")
        A_f, A_b = -module.A_log.float().exp(), -module.A_b_log.float().exp()
        scanned: Any = bidirectional_scan(
            x_f, x_b, delta_f, delta_b, A_f, A_b, B_f, B_b, C_f, C_b,
            D=module.D.float(),
            D_b=module.D_b.float(),
            z=z if opened is None else None,
            delta_bias=module.dt_proj.bias.float(),
            delta_bias_b=module.dt_proj_b.bias.float(),
            delta_softplus=True,
            return_branches=branches or opened is not None,
        )  # fmt: skip
        merged, *apart = scanned if branches or opened is not None else (scanned,)
        gate = F.silu(z)
        first: list[Tensor | None] = [None, None]
        if inside.begins:
            sums_f = passed(step_sizes(delta_f, module.dt_proj.bias))
            sums_b = passed(step_sizes(delta_b, module.dt_proj_b.bias), reverse=True)
            first = [started(inside, C_f, sums_f, A_f), started(inside, C_b, sums_b, A_b, "_b")]
        if opened is not None:
            ways = [opened[0][0], opened[-1][0]]
            B_f, C_f, y_f = (ways[0].drop(part) for part in (B_f, C_f, apart[0]))
            B_b, C_b, y_b = (ways[1].drop(part) for part in (B_b, C_b, apart[1]))
            first = [None if y is None else way.drop(y) for way, y in zip(ways, first, strict=True)]
            merged, apart = (y_f + y_b) / 2 * gate, [y_f * gate, y_b * gate]
        reads = both(inside.read(C_f), first[0]), both(inside.read(C_b, "_b"), first[1])
        ahead, back = (merged.new_zeros(()) if read is None else read for read in reads)
        gated = merged + inside.shifted((ahead + back) / 2) * gate
        output = inside.projected(module.out_proj, gated)
        parts = {"B": B_f, "C": C_f, "B_b": B_b, "C_b": C_b}
        if not branches:
            return Mixed(output, parts=parts)
        half = (apart[0] - apart[1] + (ahead - back) * gate) / 2
        return Mixed(output, half=half if tokens is None else half.index_select(1, tokens), parts=parts)


def opened_for(inside: Inside, x: Tensor) -> list[tuple[Insertion, Tensor]] | None:
    """Where the affixes of both directions stand in x (B, L, E), once or for each of them; None without any.
    The one of the backward direction is met by it as the other is by the forward direction."""
    if not inside.affixes:
        return None
    found = []
    for suffix in DIRECTIONS:
        if suffix in inside.affixes:
            where, tokens = inside.affixes[suffix]
            way = Insertion.fixed(x.shape[1], len(tokens), where, x.device)
            found.append((way.mirrored() if suffix else way, tokens))
    return found
