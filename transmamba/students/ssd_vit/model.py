"""A vision transformer with attention alone replaced by a bidirectional Mamba-2 mixer of the same heads.

[proposal, not the paper's] MLPs, norms, embeddings and head are the teacher's, bit for bit; `qkv` and `proj`
of attention become C, B, x and the output projection with their biases. Chosen layers may keep their
attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SwiGLU, get_act_layer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core.layout import Grid
from ...core.output import Branches, Capture, Captures, Context, Logits, Output, Stream
from ...errors import UserError
from ...layers.mamba2 import SSDAttention
from ...layers.mixed import Mixed, Want, kept
from ...subcloning.plan import Dropped, Take, depth_map
from ...subcloning.selection import Selection
from ...views.view import View
from ..adaptable import own, own_parts
from ..after import After, followed
from ..frames import ScansFrames, joined, only_pictures
from ..reading import ACTIVATIONS, suits_layer_norms
from ..sizes import check_rates, check_sizes
from ..timm_arguments import ALONE, Asked
from .plan import plan_block, plan_ends


class SSDBlock(Block):
    """timm's pre-norm block, which also gives what its mixer made."""

    def forward(self, x: Tensor, want: Want | None = None, **timm: Any) -> Any:
        """The stream (B, L, D) after the block; with `want` also the mixer's record, or what the mixer alone
        adds."""
        if want is None:
            return super().forward(x, **timm)
        mixed = self._mix(x, want)
        if want.alone:
            return self.ls1(mixed.output), mixed
        survives = self.drop_path1(x.new_ones(len(x), 1, 1))  # one draw for the output and its branches
        if mixed.half is not None:
            mixed.half = mixed.half * survives.to(mixed.half.dtype)
            if want.apart:
                mixed.half = F.linear(mixed.half, self.written().to(mixed.half.dtype))
        x = x + survives * self.ls1(mixed.output)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), mixed

    def _mix(self, x: Tensor, want: Want) -> Mixed:
        if hasattr(self.attn, "mix"):  # an adapter around an SSDAttention has it, too
            return self.attn.mix(self.norm1(x), branches=want.branches, tokens=want.tokens)
        return Mixed(self.attn(self.norm1(x)))

    def written(self) -> Tensor:
        """The matrix (D, D) through which the mixer writes, LayerScale included."""
        weight = self.attn.written() if hasattr(self.attn, "written") else self.attn.proj.weight
        return weight * self.ls1.gamma[:, None] if hasattr(self.ls1, "gamma") else weight


class SSDVisionTransformer(ScansFrames, VisionTransformer):
    """timm's VisionTransformer whose blocks mix tokens with `SSDAttention`, but for `attention_layers`.

    norm_eps:  epsilon of every norm, where the teacher's is not timm's 1e-6
    gated_mlp: whether its MLPs are gated, act(gate) * up (SwiGLU where `act_layer` is silu)
    num_frames: scan all frames of a video (`ScansFrames`); layers that keep attention attend over them
    """

    def __init__(
        self,
        *,
        attention_layers: Sequence[int] = (),
        norm_eps: float | None = None,
        gated_mlp: bool = False,
        num_frames: int = 1,
        **kwargs: Any,
    ) -> None:
        _check(**kwargs)
        if gated_mlp:
            kwargs["mlp_layer"] = SwiGLU
        super().__init__(block_fn=SSDBlock, **kwargs)
        self.make_times(num_frames)
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
        own = ("A_log", "A_b_log", "temporal_pos_embedding")
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name.endswith(own)}

    def make_times(self, num_frames: int) -> None:
        """Raises ValueError for options under which frames have no fixed number of tokens."""
        if num_frames != 1 and (self.dynamic_img_size or not isinstance(self.patch_drop, nn.Identity)):
            raise ValueError("num_frames goes without dynamic_img_size and patch_drop_rate; leave them out")
        super().make_times(num_frames)

    def _pos_embed(self, x: Tensor) -> Tensor:
        with self.embedding():
            return self.timed(super()._pos_embed(x), 1)

    def _embed(self, x: Tensor) -> Tensor:
        """Tokens (B, L, D) of images, (B, T * L, D) of videos."""
        x, times = self.pictures(x)
        patches = self.patch_embed(x)
        with self.embedding():
            x = self.timed(super()._pos_embed(patches), times)
        return joined(self.norm_pre(self.patch_drop(x)), times)

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, **timm: Any) -> Tensor:
        """timm's, of videos (B, T, C, H, W) too. Raises ValueError for a mask of attention over frames."""
        if x.ndim != 5 and self.adapting is None:
            return super().forward_features(x, attn_mask=attn_mask, **timm)
        if attn_mask is not None or timm.get("is_causal"):
            raise ValueError("all tokens are read both ways; leave attn_mask and is_causal out")
        x, put = self.opened(self._embed(x))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self._spares_memory() else block(x)
        return self.norm(own(x, put))

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Of every frame what timm's reads of a picture; their mean."""
        how = self.global_pool if pool_type is None else pool_type
        times = x.shape[1] // self.layout.length
        if self.temporal_pos_embedding is None or times == 1 or not how:
            return super().pool(x, pool_type)
        each = super().pool(x.unflatten(1, (times, -1)).flatten(0, 1), pool_type)
        return each.unflatten(0, (-1, times)).mean(dim=1)

    def _spares_memory(self) -> bool:
        return self.grad_checkpointing and self.training

    # --- the student's interface
    # ------------------------------------------------------------------------------

    @property
    def layout(self) -> Grid:
        names = (["cls"] if self.has_class_token else []) + [f"reg{i}" for i in range(self.num_reg_tokens)]
        rows, columns = self.patch_embed.grid_size
        return Grid(rows, columns, special=tuple((name, i) for i, name in enumerate(names)))

    @property
    def towers(self) -> dict[str, SSDVisionTransformer]:
        return {"image": self}

    @property
    def width(self) -> int:
        return self.embed_dim

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    @property
    def parts(self) -> dict[str, int]:
        return {"B": self.embed_dim, "C": self.embed_dim}

    def forward_intermediates(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        """timm's, of pictures. Raises ValueError where a prompt is among the tokens."""
        only_pictures(x)
        if self.adapting is not None and self.adapting.insertion(x.flatten(2), Context()) is not None:
            raise ValueError("forward_intermediates goes without a prompt; disable the adapter that has one")
        return super().forward_intermediates(x, *arguments, **options)

    def run(self, inputs: Mapping[str, Tensor], captures: Captures, after: After | None = None) -> Output:
        capture, stream = captures.get("image", Capture()), Stream(self.layout)
        x, put = self.opened(self._embed(inputs["image"]))
        tokens = capture.tokens if put is None else put.places(capture.tokens)
        for k, block in enumerate(self.blocks):
            want = Want(k in capture.branches, tokens, apart=capture.apart)
            if self._spares_memory():
                x, mixed = checkpoint(block, x, want, use_reentrant=False)
            else:
                x, mixed = block(x, want)
            x = followed(x, k, after)
            if k in capture.hidden:
                stream.hidden[k] = own(x, put)
            if want.branches:
                here = x if tokens is None else x.index_select(1, tokens)
                weight = None if mixed.half is None or capture.apart else block.written()
                stream.branches[k] = Branches(here, mixed.half, weight)
            if k in capture.mixers:
                stream.mixers[k] = own_parts(kept(mixed.parts, capture.mixers[k]), put)
        return Output({"image": stream}, Logits(own(x, put), self._logits))

    def _logits(self, x: Tensor) -> Tensor:
        return self.forward_head(self.norm(x))

    def mixer(
        self, k: int, hidden: Tensor, context: Context, capture: Capture
    ) -> tuple[Tensor, dict[str, Tensor]]:
        output, mixed = self.blocks[k](hidden, Want(alone=True))
        return output, kept(mixed.parts, capture.mixers.get(k, frozenset()))

    def sources(self, kinds: Sequence[str]) -> dict[int, int]:
        attention = [s for s, kind in enumerate(kinds) if kind == "attention"]
        chosen = depth_map(self.num_layers, len(attention))
        return {k: attention[t] for k, t in enumerate(chosen) if k not in self.attention_layers}

    def groups(self) -> dict[str, Callable[[str], bool]]:
        kept = tuple(f"blocks.{k}." for k in self.attention_layers)
        return {
            "mixers": lambda name: ".attn." in name and not name.startswith(kept),
            "head": lambda name: name.startswith("head."),
        }

    def units(self) -> list[nn.Module]:
        return list(self.blocks)

    def plan(
        self, view: View, select: Mapping[str, Selection], asked: Asked = ALONE
    ) -> Iterator[Take | Dropped]:
        tower = view.towers["image"]
        if tower.width != self.width:
            raise UserError(
                f"ssd_vit keeps the teacher's width {tower.width}, but the student is {self.width} wide; "
                f"set {asked.at}.kwargs.embed_dim={tower.width}, or {asked.kind}=vim to shrink"
            )
        if isinstance(self.blocks[0].norm1, nn.LayerNorm) and not suits_layer_norms(tower):
            raise UserError(
                "the teacher's RMSNorms read a stream that is not centred, and this ssd_vit has LayerNorms; "
                f"set {asked.at}.kwargs.norm_layer=rmsnorm"
            )
        yield from plan_ends(self, view, asked)
        for k, t in enumerate(depth_map(self.num_layers, len(tower.ends))):
            yield from plan_block(self, tower, k, t, asked)


def _check(
    img_size: Any = 224,
    patch_size: Any = 16,
    embed_dim: int = 768,
    num_heads: int = 12,
    in_chans: int = 3,
    depth: int = 12,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    class_token: bool = True,
    global_pool: str = "token",
    act_layer: Any = None,
    **others: Any,
) -> None:
    """Of the constructor's arguments. Raises ValueError for sizes of which no ssd_vit can be made."""
    sizes = dict(embed_dim=embed_dim, num_heads=num_heads, in_chans=in_chans, depth=depth)
    check_sizes(img_size, patch_size, None, **sizes)
    check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim is {embed_dim}, no multiple of num_heads, {num_heads}")
    try:
        get_act_layer(act_layer)
    except KeyError:
        known = " or ".join(ACTIVATIONS)
        raise ValueError(f"act_layer is {act_layer!r}, which timm does not know; write {known}") from None
    if global_pool == "token" and not class_token:
        raise ValueError("global_pool is 'token' without a class_token; write global_pool=avg as well")
