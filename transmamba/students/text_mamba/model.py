"""A text tower with causal attention replaced by a causal Mamba-2 mixer of the same heads.

[proposal, not the paper's] Embeddings, norms, MLPs and projection are the teacher's, bit for bit. It is read
at the end of the text (CLIP) or of the row (SigLIP, whose attention is not causal; but a scan, too, has read
all tokens at its last one). It stands in for open_clip's TextTransformer within a CustomTextCLIP, and is a
tower of a student. Shapes: B texts, L tokens, D channels, E of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.layers import LayerNormFp32, LayerScale, Mlp, RmsNormFp32, SwiGLU, get_act_layer
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core import layout
from ...core.output import Branches, Capture, Context, Stream
from ...errors import UserError
from ...layers.causal import CausalSSD
from ...layers.mixed import Mixed, Want, kept
from ...subcloning.plan import Dropped, Take, depth_map
from ...views.heads import Embedder, EndOfText
from ...views.view import Tower
from .plan import plan
from .shape import TextShape

PLAIN = Want()
NOTHING = Capture()


class TextBlock(nn.Module):
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))), `attn` being the mixer."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        norm = {"layernorm": LayerNormFp32, "rmsnorm": RmsNormFp32}[shape.norm]
        mlp = SwiGLU if shape.gated_mlp else Mlp
        self.norm1 = norm(shape.width, eps=shape.norm_eps)
        self.attn = CausalSSD(shape.width, shape.heads, length=_usual_length(shape))
        self.ls1 = LayerScale(shape.width, 1.0) if shape.layer_scale else nn.Identity()
        self.norm2 = norm(shape.width, eps=shape.norm_eps)
        self.mlp = mlp(shape.width, shape.mlp_width, act_layer=get_act_layer(shape.act))
        self.ls2 = LayerScale(shape.width, 1.0) if shape.layer_scale else nn.Identity()

    def forward(self, x: Tensor, context: Context, want: Want = PLAIN) -> tuple[Tensor, Mixed]:
        """The stream (B, L, D) after the block, or what its mixer alone adds, and the mixer's record."""
        mixed = self.attn(self.norm1(x), context)
        if want.alone:
            return self.ls1(mixed.output), mixed
        x = x + self.ls1(mixed.output)
        return x + self.ls2(self.mlp(self.norm2(x))), mixed


def _usual_length(shape: TextShape) -> int:
    """Tokens over which a mixer begins as an average: what the token that is read has before it. That is the
    whole row where the last one is read; a caption fills about a quarter of CLIP's 77."""
    return shape.context_length if shape.pool_type == "last" else max(1, shape.context_length // 4)


class TextMamba(nn.Module):
    """Vectors (B, E) of texts (B, L), L at most `context_length`."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.shape = shape
        self.context_length, self.vocab_size = shape.context_length, shape.vocab_size
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.width)
        self.positional_embedding = nn.Parameter(torch.empty(shape.context_length, shape.width))
        self.blocks = nn.ModuleList(TextBlock(shape) for _ in range(shape.layers))
        norm = {"layernorm": LayerNormFp32, "rmsnorm": RmsNormFp32}[shape.norm]
        self.norm = norm(shape.width, eps=shape.norm_eps)
        linear = shape.proj_type == "linear"
        self.text_projection = (
            nn.Linear(shape.width, shape.embed_dim, bias=shape.proj_bias) if linear else None
        )
        self.grad_checkpointing = False
        self.init_parameters()

    @torch.no_grad()
    def init_parameters(self) -> None:
        """open_clip's scales for what it has too; every bias 0, every mixer neutral."""
        width, depth = self.shape.width, self.shape.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        within, back = width**-0.5, (2 * depth * width) ** -0.5
        scales = {"qkv": within, "proj": back, "fc1": (2 * width) ** -0.5, "fc2": back}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(
                    module.weight, std=scales.get(name.rpartition(".")[2].partition("_")[0], within)
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, CausalSSD):
                module.neutral_()

    # --- a tower of a student ---

    @property
    def layout(self) -> layout.Sequence:
        return layout.Sequence()

    @property
    def width(self) -> int:
        return self.shape.width

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    @property
    def parts(self) -> dict[str, int]:
        return {"B": self.width, "C": self.width}

    def sources(self, kinds: Sequence[str]) -> dict[int, int]:
        attention = [s for s, kind in enumerate(kinds) if kind == "attention"]
        return {k: attention[t] for k, t in enumerate(depth_map(self.num_layers, len(attention)))}

    def mixer(
        self, k: int, hidden: Tensor, context: Context, capture: Capture
    ) -> tuple[Tensor, dict[str, Tensor]]:
        output, mixed = self.blocks[k](hidden, context, Want(alone=True))
        return output, kept(mixed.parts, capture.mixers.get(k, frozenset()))

    def run(self, inputs: Mapping[str, Tensor], capture: Capture = NOTHING) -> tuple[Stream, Tensor]:
        """The stream of `text` (B, L) with what `capture` names, and its end (B, L, D) before the last norm;
        `text_mask` (B, L) says which tokens are real. Raises UserError for packed or longer texts."""
        x, context = self._embedded(inputs)
        stream = Stream(self.layout, context.mask)
        for k, block in enumerate(self.blocks):
            x, mixed = self._through(block, x, context)
            if k in capture.hidden:
                stream.hidden[k] = x
            if k in capture.branches:
                stream.branches[k] = Branches(
                    x if capture.tokens is None else x.index_select(1, capture.tokens)
                )
            if k in capture.mixers:
                stream.mixers[k] = kept(mixed.parts, capture.mixers[k])
        return stream, x

    def embed(self, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, E), of any length, from the end of the stream (B, L, D)."""
        if self.shape.pool_type == "last":
            pooled = hidden[:, -1]
        else:
            pooled = EndOfText(self.shape.eos_id)(hidden, inputs["text"])
        pooled = self.norm(pooled)
        return pooled if self.text_projection is None else self.text_projection(pooled)

    def plan(self, tower: Tower, head: Embedder, prefix: str = "") -> Iterator[Take | Dropped]:
        """What takes which tensor of a teacher's text tower and its head, `prefix` before each target. Raises
        UserError for another width than the student's, and for what it cannot do."""
        return plan(self, tower, head, prefix)

    def _embedded(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Context]:
        text = inputs["text"]
        if "text_segment" in inputs:
            raise UserError("text_segment: text_mamba makes one vector a row; give it one text a row")
        if text.shape[1] > self.context_length:
            raise UserError(f"texts of {text.shape[1]} tokens; text_mamba reads {self.context_length}")
        # open_clip casts linears alone to half precision; their type is the stream's
        first: Any = self.blocks[0]
        dtype = first.attn.qkv.weight.dtype
        x = self.token_embedding(text).to(dtype) + self.positional_embedding[: text.shape[1]].to(dtype)
        return x, Context.of(inputs)

    def _through(self, block: nn.Module, x: Tensor, context: Context) -> tuple[Tensor, Mixed]:
        if self.grad_checkpointing and self.training:
            return checkpoint(block, x, context, use_reentrant=False)
        return block(x, context)

    # --- open_clip's text tower ---

    def forward(self, text: Tensor) -> Tensor:
        """(B, E) of texts (B, L)."""
        inputs = {"text": text}
        return self.embed(self.run(inputs)[1], inputs)

    def forward_intermediates(
        self,
        text: Tensor,
        indices: int | list[int] | None = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NLC",
        output_extra_tokens: bool = False,
    ) -> dict[str, Any]:
        """The streams (B, L, D) after the blocks `indices` (the last so many, or all), and the vectors, by
        open_clip's names."""
        if output_fmt != "NLC":
            raise ValueError(f"output_fmt is {output_fmt!r}; write 'NLC'")
        wanted, _ = feature_take_indices(self.num_layers, indices)
        inputs = {"text": text}
        stream, x = self.run(inputs, Capture(hidden=frozenset(wanted)))
        found = [stream.hidden[k] for k in sorted(stream.hidden)]
        output: dict[str, Any] = {
            "text_intermediates": [self.norm(each) for each in found] if normalize_intermediates else found
        }
        if not intermediates_only:
            output["text_features"] = self.embed(x, inputs)
        return output

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        decays = {name for name, _ in self.named_parameters() if name.endswith("A_log")}
        return {"positional_embedding"} | decays

    def lock(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freeze all but the last `unlocked_layers` groups, which are those of open_clip's own tower: the
        embeddings, each block (the last one with the final norm), the projection."""
        if not freeze_layer_norm:
            raise ValueError("freeze_layer_norm=False: a text_mamba's norms are locked with their block")
        groups: list[list[Tensor]] = [[self.token_embedding.weight, self.positional_embedding]]
        groups += [list(block.parameters()) for block in self.blocks]
        groups[-1] += self.norm.parameters()
        if self.text_projection is not None:
            groups.append(list(self.text_projection.parameters()))
        for number, group in enumerate(groups):
            for parameter in group:
                parameter.requires_grad_(number >= len(groups) - unlocked_layers)
