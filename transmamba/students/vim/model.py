"""Vision Mamba (Zhu et al., arXiv 2401.09417) as a timm model: official names and shapes, nothing compiled.

One layer is one residual sublayer; the class token is in the middle. B images, L tokens, D, E inner channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core.layout import Grid
from ...core.output import Branches, Capture, Captures, Context, Logits, Output, Stream
from ...layers.mixed import Mixed, Want, kept
from ...subcloning.plan import depth_map
from ...subcloning.selection import Selection
from ...views.view import View
from ..adaptable import own, own_parts
from ..after import After, followed
from ..frames import ScansFrames, joined, mean_frame, only_pictures
from ..sizes import check_pooling, check_rates, check_sizes
from ..timm_arguments import ALONE, Asked
from .embedding import norm_after, note_sizes, patches_of, resized_positions
from .layer import PLAIN, VimLayer
from .plan import Items, plan_ends, plan_layer


class VisionMamba(ScansFrames, nn.Module):
    """Vim, bidirectional v2, class token in the middle.

    Options beside timm's usual ones: `d_state`, `expand`, `d_conv`, `stride` (pixels between patches that
    overlap, as in the official stride-8 models), and the additions to the official model
    `proj_bias`, `gate_bias` (see `BidirectionalMamba`), `num_frames` (see `ScansFrames`) and `pre_norm`: a
    LayerNorm after the embedding, as CLIP's towers have it (`centred`: with each token's mean taken out after
    it, as folding leaves it), or an RMSNorm there (`rms`).
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 4,
        proj_bias: bool = False,
        gate_bias: bool = False,
        pre_norm: Literal["", "layer", "centred", "rms"] = "",
        pre_norm_eps: float = 1e-5,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stride: int | None = None,
        dynamic_img_size: bool = False,
        num_frames: int = 1,
    ) -> None:
        super().__init__()
        check_pooling(global_pool)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        sizes = dict(depth=depth, embed_dim=embed_dim, d_state=d_state, expand=expand, d_conv=d_conv)
        check_sizes(img_size, patch_size, stride, in_chans=in_chans, **sizes)
        if dynamic_img_size:
            raise ValueError("dynamic_img_size is not for a Vim; call set_input_size for each size instead")
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens, self.grad_checkpointing = 1, False
        self.patch_embed = patches_of(img_size, patch_size, in_chans, embed_dim, stride)
        num_patches = self.patch_embed.num_patches
        self.cls_position = num_patches // 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches + 1, embed_dim))
        self.make_times(num_frames)
        self.norm_pre = norm_after(pre_norm, embed_dim, pre_norm_eps)
        self.centred = pre_norm == "centred"
        mixer: dict[str, Any] = dict(d_state=d_state, expand=expand, d_conv=d_conv)
        mixer |= dict(proj_bias=proj_bias, gate_bias=gate_bias)
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(VimLayer(embed_dim, rate, **mixer) for rate in rates)
        self.norm_f = nn.RMSNorm(embed_dim, eps=1e-5)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        reduction = self.patch_embed.feat_ratio()
        self.feature_info = [
            dict(module=f"layers.{i}", num_chs=embed_dim, reduction=reduction) for i in range(depth)
        ]
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Truncated normals as in DeiT; output projections over sqrt(layers), as in GPT-2 and Mamba."""
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        layer: Any
        for layer in self.layers:
            layer.mixer.out_proj.weight.div_(len(self.layers) ** 0.5)
            for projection in (layer.mixer.in_proj, layer.mixer.out_proj):
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    # --- timm's interface ---

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        names = {"pos_embed", "cls_token"}
        own = ("A_log", "A_b_log", "D", "D_b", "gate_bias", "temporal_pos_embedding")
        return names | {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in own}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(
            stem=r"^cls_token|pos_embed|temporal_pos_embedding|patch_embed",
            blocks=[(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        if global_pool is not None:
            check_pooling(global_pool)
            self.global_pool = global_pool
        device = self.pos_embed.device
        self.head = nn.Linear(self.embed_dim, num_classes, device=device) if num_classes else nn.Identity()

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Take images, or patches, of another size from now on; positions and patches are resampled."""
        embed, old = self.patch_embed, self.patch_embed.grid_size
        check_sizes(img_size or embed.img_size, patch_size or embed.patch_size, None)
        embed.set_input_size(img_size, patch_size)
        if embed.grid_size != old:
            resized = resized_positions(self.pos_embed, old, embed.grid_size)
            self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
            self.cls_position = embed.num_patches // 2
        note_sizes(self, embed.img_size, embed.patch_size)

    def _embed(self, x: Tensor) -> Tensor:
        x, times = self.pictures(x)
        patches = self.patch_embed(x)
        before, after = patches[:, : self.cls_position], patches[:, self.cls_position :]
        with self.embedding():
            cls_token = self.cls_token.expand(len(x), -1, -1).to(patches.dtype)
            x = torch.cat([before, cls_token, after], dim=1) + self.pos_embed
        x = self.norm_pre(self.timed(x, times))
        return joined(x - x.mean(dim=-1, keepdim=True) if self.centred else x, times)

    def _layer(self, layer: nn.Module, x: Tensor, want: Want = PLAIN) -> tuple[Tensor, Mixed]:
        if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
            return checkpoint(layer, x, want, use_reentrant=False)
        return layer(x, want)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised tokens (B, L, D) of images (B, C, H, W), in sequence order; of videos frame by frame."""
        x, put = self.opened(self._embed(x))
        for layer in self.layers:
            x, _ = self._layer(layer, x)
        return self.norm_f(own(x, put))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = mean_frame(x, self.layout.length) if self.global_pool else x
        if self.global_pool == "token":
            x = x[:, self.cls_position]
        elif self.global_pool == "avg":
            x = x[:, self.layout.patches].mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's intermediates: patch tokens as (B, D, h, w) or (B, h * w, D), the class token beside
        them."""
        only_pictures(x)
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}; write 'NCHW' or 'NLC'")
        take, last = feature_take_indices(len(self.layers), indices)
        kept = []
        x, put = self.opened(self._embed(x))
        for i, layer in enumerate(self.layers[: last + 1] if stop_early else self.layers):
            x, _ = self._layer(layer, x)
            if i in take:
                kept.append(own(self.norm_f(x) if norm else x, put))
        patches: list[Any] = [feature[:, self.layout.patches] for feature in kept]
        if output_fmt == "NCHW":
            patches = [p.transpose(1, 2).unflatten(2, self.layout.grid).contiguous() for p in patches]
        if return_prefix_tokens:
            prefix = [feature[:, self.cls_position : self.cls_position + 1] for feature in kept]
            patches = list(zip(patches, prefix, strict=True))
        return patches if intermediates_only else (self.norm_f(own(x, put)), patches)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        take, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.norm_f = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.reset_classifier(0, "")
        return take

    # --- the student's interface ---

    @property
    def layout(self) -> Grid:
        rows, columns = self.patch_embed.grid_size
        return Grid(rows, columns, special=(("cls", self.cls_position),))

    @property
    def towers(self) -> dict[str, VisionMamba]:
        return {"image": self}

    @property
    def width(self) -> int:
        return self.embed_dim

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def parts(self) -> dict[str, int]:
        first: Any = self.layers[0]
        return dict.fromkeys(("B", "C", "B_b", "C_b"), first.mixer.d_state)

    def run(self, inputs: Mapping[str, Tensor], captures: Captures, after: After | None = None) -> Output:
        capture, stream = captures.get("image", Capture()), Stream(self.layout)
        x, put = self.opened(self._embed(inputs["image"]))
        tokens = capture.tokens if put is None else put.places(capture.tokens)
        layer: Any
        for k, layer in enumerate(self.layers):
            want = Want(k in capture.branches, tokens, apart=capture.apart)
            x, mixed = self._layer(layer, x, want)
            x = followed(x, k, after)
            if k in capture.hidden:
                stream.hidden[k] = own(x, put)
            if want.branches:
                here = x if tokens is None else x.index_select(1, tokens)
                stream.branches[k] = Branches(here, mixed.half, layer.written(want))
            if k in capture.mixers:
                stream.mixers[k] = own_parts(kept(mixed.parts, capture.mixers[k]), put)
        return Output({"image": stream}, Logits(own(x, put), self._logits))

    def _logits(self, x: Tensor) -> Tensor:
        return self.forward_head(self.norm_f(x))

    def mixer(
        self, k: int, hidden: Tensor, context: Context, capture: Capture
    ) -> tuple[Tensor, dict[str, Tensor]]:
        output, mixed = self.layers[k](hidden, Want(alone=True))
        return output, kept(mixed.parts, capture.mixers.get(k, frozenset()))

    def average_(self, k: int, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Let mixer k begin as the average of its values over the image (`SubcloneConfig.average`), to scale
        on these inputs, which reach it through the layers before it."""
        mixer: Any = self.layers[k].mixer
        mixer.average_(self.layout.length)
        capture = {"image": Capture(mixers={k: frozenset(("B", "B_b"))})}
        mixer.level_([self.run(inputs, capture).stream.mixers[k] for inputs in batches])

    def sources(self, kinds: Sequence[str]) -> dict[int, int]:
        return dict(enumerate(depth_map(self.num_layers, len(kinds))))

    def groups(self) -> dict[str, Callable[[str], bool]]:
        return {"mixers": lambda name: ".mixer." in name, "head": lambda name: name.startswith("head.")}

    def units(self) -> list[nn.Module]:
        return list(self.layers)

    def plan(self, view: View, select: Mapping[str, Selection], asked: Asked = ALONE) -> Items:
        tower = view.towers["image"]
        yield from plan_ends(self, view, select["image"], asked)
        for k, s in self.sources(tower.kinds).items():
            yield from plan_layer(self, tower, select["image"], k, s)
