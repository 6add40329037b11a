"""Mamba-2 in attention's place: that of our student `ssd_vit`, whose two directions share all but decays, and
that of one direction in our students' text towers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from transmamba_kernels import bidirectional_ssd, causal_conv1d, ssd_scan

from ...config.registry import FAMILIES
from ...core.output import Context
from ...layers.causal import NO_CONTEXT, STILL
from ...layers.insertion import Insertion
from ...layers.mixed import Mixed
from .family import Family, shapes_of
from .inside import Inside
from .mixer import Mixer, Place
from .starting import passed, started_heads, step_sizes


@FAMILIES.register("ssd")
@dataclass(frozen=True)
class SSD(Family):
    """C, B and x are rows of `qkv`, in this order; the gate and delta have projections of their own.
    `lora_in` takes both `qkv` and the gate, `lora_x_proj` the rows of C and B and the projection of delta."""

    classes: ClassVar[tuple[str, ...]] = (
        "transmamba.layers.mamba2.SSDAttention",
        "transmamba.layers.mamba2.BidirectionalSSD",
    )
    doors: ClassVar[tuple[str, ...]] = ("mix", "written")
    kind: ClassVar[str] = "a bidirectional Mamba-2 mixer"
    causal: ClassVar[bool] = False

    def describe(self, module: Any) -> Mixer:
        width, shapes = module.qkv.in_features, shapes_of(module)
        delta = Place("dt_proj.weight", suffix="_dt")
        rates = (Place("A_log"), Place("A_b_log", suffix="_b"))
        return Mixer(
            kind=self.kind,
            width=width,
            inner=width,
            state=module.head_dim,
            heads=module.num_heads,
            groups=module.num_heads,
            taps=module.conv1d.kernel_size[0],
            places={
                "in": (Place("qkv.weight"), Place("gate.weight", suffix="_z")),
                "c": (Place("qkv.weight", 0, width),),
                "b": (Place("qkv.weight", width, 2 * width),),
                "x": (Place("qkv.weight", 2 * width),),
                "z": (Place("gate.weight"),),
                "x_proj": (Place("qkv.weight", 0, 2 * width), delta),
                "d": (Place("dt_proj.weight"),),
                "dt_proj": (Place("dt_proj.weight"),),
                "out": (Place("proj.weight"),),
                "a": tuple(place for place in rates if place.path in shapes),
                "dt_bias": (Place("dt_proj.bias"),),
                "conv": (Place("conv1d.weight"),),
                "biases": (Place("conv1d.bias"), Place("dt_proj.bias")),
            },
            shapes=shapes,
            causal=self.causal,
            projected=3 * width + module.num_heads,
        )

    def run(self, module: Any, inside: Inside, u: Tensor, *args: Any, **kwargs: Any) -> Any:
        """timm's call of attention: a tensor. `BidirectionalSSD` itself gives its record."""
        if not hasattr(module, "mix"):
            return self.mix(module, inside, u, *args, **kwargs)
        if any(argument for argument in (*args, *kwargs.values()) if argument is not None):
            raise ValueError("an SSD mixer takes no attention mask")
        return self.mix(module, inside, u).output

    def written(self, module: Any, inside: Inside) -> Tensor:
        return module.written()

    def mix(
        self,
        module: Any,
        inside: Inside,
        u: Tensor,
        *,
        branches: bool = False,
        tokens: Tensor | None = None,
    ) -> Mixed:
        """u (B, L, d) -> `Mixed`, as the mixer's own forward."""
        qkv, delta = module.qkv(u), F.linear(u, module.dt_proj.weight)
        opened = None
        if inside.affixes:
            where, put = inside.affixes[""]
            opened = Insertion.fixed(u.shape[1], len(put), where, u.device)
            columns = put.split([qkv.shape[-1], module.num_heads], dim=-1)
            qkv, delta = opened.place(qkv, columns[0]), opened.place(delta, columns[1])
        C, B, x = module.heads(module._convolve(qkv))
        scaled, gate = C * module.head_dim**-0.5, F.silu(module.gate(u))
        A, A_b = -module.A_log.float().exp(), -module.A_b_log.float().exp()
        made: Any = bidirectional_ssd(
            x,
            delta,
            A,
            B,
            scaled,
            A_b=A_b,
            delta_bias=module.dt_proj.bias.float(),
            delta_softplus=True,
            return_branches=branches,
            branch_tokens=tokens if opened is None else None,
        )
        y, *apart = made if branches else (made,)
        firsts = self.firsts(inside, scaled, step_sizes(delta, module.dt_proj.bias), A, A_b)
        if opened is not None:
            B, C, scaled, y, *apart = (opened.drop(part) for part in (B, C, scaled, y, *apart))
            firsts = [opened.drop(first) for first in firsts]
            apart = apart if tokens is None else [part.index_select(1, tokens) for part in apart]
        y = sum(firsts, start=y)
        read = inside.read_heads(scaled, module.num_heads)
        y = (y if read is None else y + read).flatten(2)
        output = inside.projected(module.proj, inside.shifted(y) * gate)
        parts = {"B": B.flatten(2), "C": C.flatten(2)}
        if not branches:
            return Mixed(output, parts=parts)
        if firsts:  # each direction counts twice in its branch, of which the mean is taken
            firsts = firsts if tokens is None else [first.index_select(1, tokens) for first in firsts]
            apart = [part + 2 * first for part, first in zip(apart, firsts, strict=True)]
        gate = gate if tokens is None else gate.index_select(1, tokens)
        return Mixed(output, half=((apart[0] - apart[1]) * 0.5).flatten(2) * gate, parts=parts)

    def firsts(self, inside: Inside, C: Tensor, dt: Tensor, A: Tensor, A_b: Tensor) -> list[Tensor]:
        """What the initial states of the two directions add, each (B, L, H, P); empty without them."""
        if not inside.begins:
            return []
        ahead = started_heads(inside, C, passed(dt), A)
        back = started_heads(inside, C, passed(dt, reverse=True), A_b, "_b")
        return [first for first in (ahead, back) if first is not None]


@FAMILIES.register("causal_ssd")
@dataclass(frozen=True)
class CausalSSD(SSD):
    """That of text towers."""

    classes: ClassVar[tuple[str, ...]] = ("transmamba.layers.causal.CausalSSD",)
    doors: ClassVar[tuple[str, ...]] = ("written",)
    kind: ClassVar[str] = "a causal Mamba-2 mixer"
    causal: ClassVar[bool] = True

    def run(self, module: Any, inside: Inside, u: Tensor, context: Context = NO_CONTEXT) -> Mixed:
        """u (B, L, d) -> `Mixed`, as the mixer's own forward."""
        mixed, delta = module.qkv(u), F.linear(u, module.dt_proj.weight)
        opened = inside.prefix(u, context)
        if opened is not None:
            put = inside.affixes[""][1].split([mixed.shape[-1], module.num_heads], dim=-1)
            mixed, delta = opened.place(mixed, put[0]), opened.place(delta, put[1])
            context = opened.context(context)
        if context.mask is not None:
            padding = ~context.mask.unsqueeze(-1)
            mixed, delta = mixed.masked_fill(padding, 0), delta.masked_fill(padding, STILL)
        weight, bias, segments = module.conv1d.weight[:, 0], module.conv1d.bias, context.segments
        C, B, x = module.heads(causal_conv1d(mixed, weight, bias, seq_idx=segments))
        scaled = C * module.head_dim**-0.5
        A = -module.A_log.float().exp()
        y = ssd_scan(
            x,
            delta,
            A,
            B,
            scaled,
            delta_bias=module.dt_proj.bias.float(),
            delta_softplus=True,
            seq_idx=segments,
        )
        if inside.begins:
            sums = passed(step_sizes(delta, module.dt_proj.bias), context.mask, segments)
            first = started_heads(inside, scaled, sums, A)
            y = y if first is None else y + first
        if opened is not None:
            B, C, scaled, y = (opened.drop(part) for part in (B, C, scaled, y))
        read = inside.read_heads(scaled, module.num_heads)
        y = inside.shifted((y if read is None else y + read).flatten(2))
        output = inside.projected(module.proj, y * F.silu(module.gate(u)))
        return Mixed(output, parts={"B": B.flatten(2), "C": C.flatten(2)})
