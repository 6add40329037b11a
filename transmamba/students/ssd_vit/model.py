"""A vision transformer with attention alone replaced by a bidirectional Mamba-2 mixer of the same heads.

[proposal, not the paper's] MLPs, norms, embeddings and head are the teacher's, bit for bit; `qkv` and `proj`
of attention become C, B, x and the output projection with their biases. Chosen layers may keep their
attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core.output import Branches, Capture, Output, TokenLayout
from ...errors import UserError
from ...layers.mamba2 import SSDAttention
from ...subcloning.selection import Selection
from ...views.view import View
from ..student import Dropped, Sublayer, Take, depth_map
from .plan import plan_block, plan_ends, suits_layer_norms


class SSDVisionTransformer(VisionTransformer):
    """timm's VisionTransformer whose blocks mix tokens with `SSDAttention`, but for `attention_layers`.

    norm_eps: epsilon of every norm, where the teacher's is not timm's 1e-6
    """

    cloned_by_default: Literal["all", "half"] = "all"

    def __init__(
        self, *, attention_layers: Sequence[int] = (), norm_eps: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if norm_eps is not None:
            for module in self.modules():
                if hasattr(module, "eps"):
                    module.eps = norm_eps
        depth = len(self.blocks)
        if any(layer not in range(depth) for layer in attention_layers):
            raise ValueError(f"attention_layers is {list(attention_layers)}; the layers are 0 to {depth - 1}")
        self.attention_layers = tuple(attention_layers)
        for k, block in enumerate(self.blocks):
            if k not in attention_layers:
                block.attn = SSDAttention(
                    self.embed_dim,
                    block.attn.num_heads,
                    length=self.patch_embed.num_patches + self.num_prefix_tokens,
                    qkv_bias=block.attn.qkv.bias is not None,
                    proj_bias=block.attn.proj.bias is not None,
                )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        decays = {name for name, _ in self.named_parameters() if name.endswith(("A_log", "A_b_log"))}
        return super().no_weight_decay() | decays

    # --- the student's interface
    # ------------------------------------------------------------------------------

    @property
    def layout(self) -> TokenLayout:
        names = (["cls"] if self.has_class_token else []) + [f"reg{i}" for i in range(self.num_reg_tokens)]
        rows, columns = self.patch_embed.grid_size
        return TokenLayout(grid=(rows, columns), special=tuple((name, i) for i, name in enumerate(names)))

    @property
    def width(self) -> int:
        return self.embed_dim

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    @property
    def state_width(self) -> int:
        return self.embed_dim

    def run(self, images: Tensor, capture: Capture) -> Output:
        output = Output(logits=None, layout=self.layout)
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(images))))
        for k, block in enumerate(self.blocks):
            run = partial(self._block, k, block, capture=capture)
            if self.grad_checkpointing and self.training:
                x, half, parts = checkpoint(run, x, use_reentrant=False)
            else:
                x, half, parts = run(x)
            if k in capture.hidden:
                output.hidden[k] = x
            if k in capture.branches:
                here = x if capture.tokens is None else x.index_select(1, capture.tokens)
                output.branches[k] = Branches(here, half, None if half is None else _written(block))
            if k in capture.mixers:
                output.mixers[k] = parts
        output.logits = self.forward_head(self.norm(x))
        return output

    def _block(
        self, k: int, block: Any, x: Tensor, capture: Capture
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        half, parts = None, {}
        if k in self.attention_layers:
            mixed = block.attn(block.norm1(x))
        else:
            out = block.attn.mix(block.norm1(x), branches=k in capture.branches, tokens=capture.tokens)
            mixed, parts = out.output, out.parts
            half = out.half
        survives = block.drop_path1(x.new_ones(len(x), 1, 1))  # one draw for the output and its branches
        half = None if half is None else half * survives.to(half.dtype)
        x = x + survives * block.ls1(mixed)
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), half, parts

    def mixer(self, k: int, hidden: Tensor, capture: Capture) -> tuple[Tensor, dict[str, Tensor]]:
        block: Any = self.blocks[k]
        out = block.attn.mix(block.norm1(hidden), branches=k in capture.branches)
        if out.half is not None:
            out.parts["spread"] = F.linear(out.half, _written(block))
        return block.ls1(out.output), out.parts

    def mixer_sources(self, num_blocks: int) -> dict[int, tuple[int, Sublayer]]:
        sources = depth_map(self.num_layers, num_blocks)
        return {k: (t, "attention") for k, t in enumerate(sources) if k not in self.attention_layers}

    def mixer_parameters(self) -> set[str]:
        kept = {f"blocks.{k}." for k in self.attention_layers}
        return {
            name
            for name, _ in self.named_parameters()
            if ".attn." in name and not name.startswith(tuple(kept))
        }

    def plan(self, view: View, select: Selection) -> Iterator[Take | Dropped]:
        if view.width != self.width:
            raise UserError(
                f"ssd_vit keeps the teacher's width {view.width}, but the student is {self.width} wide; "
                f"set student.kwargs.embed_dim={view.width}, or choose a vim student to shrink"
            )
        if isinstance(self.blocks[0].norm1, nn.LayerNorm) and not suits_layer_norms(view):
            raise UserError(
                "the teacher's RMSNorms read a stream that is not centred, and this "
                "ssd_vit has LayerNorms; leave student.model out, and it gets the teacher's norms"
            )
        yield from plan_ends(self, view)
        for k, t in enumerate(depth_map(self.num_layers, len(view.blocks))):
            yield from plan_block(self, view, k, t)


def _written(block: Any) -> Tensor:
    """The matrix (D, D) through which a block's mixer writes, LayerScale included."""
    weight = block.attn.proj.weight
    return weight * block.ls1.gamma[:, None] if hasattr(block.ls1, "gamma") else weight
