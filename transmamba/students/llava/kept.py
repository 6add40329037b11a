"""A LLaVA's own image tower, kept: the CLIP or SigLIP of transformers up to the layer that its connector
reads.

Shapes: P pictures, L tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core.layout import Grid
from ...core.output import Capture, Captures, Context, Logits, Output, Stream
from ...subcloning.plan import Dropped, Take
from ...views.embeddings import ImageEmbedding
from ...views.sublayers import Attention, Mlp
from ...views.view import Tower
from ..after import After, followed
from ..reading import take_affine, take_norm

# what of the class comes after the last layer, and is read by nobody here
UNREAD = ("post_layernorm", "head")


class KeptTower(nn.Module):
    """config: transformers', with so many layers as are read; `stock` is its model without `UNREAD`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import AutoModel

        self.stock: Any = AutoModel.from_config(config)
        self.inside = "vision_model." if hasattr(self.stock, "vision_model") else ""
        for name in UNREAD:
            if hasattr(self.vision, name):
                delattr(self.vision, name)
        self.config, self.grad_checkpointing = config, False

    @property
    def vision(self) -> Any:
        return getattr(self.stock, "vision_model", self.stock)

    @property
    def layers(self) -> Sequence[Any]:
        layers: Sequence[Any] = self.vision.encoder.layers
        return layers

    # --- the student's interface ---

    @property
    def layout(self) -> Grid:
        side = self.config.image_size // self.config.patch_size
        classed = hasattr(self.vision.embeddings, "class_embedding")
        return Grid(side, side, special=(("cls", 0),) if classed else ())

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def parts(self) -> dict[str, int]:
        return {}

    def sources(self, kinds: Sequence[str]) -> dict[int, int]:
        """None: all layers have the teacher's attention."""
        return {}

    def mixer(
        self, k: int, hidden: Tensor, context: Context, capture: Capture
    ) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError("a kept tower has no mixers, and `sources` says so")

    def run(self, inputs: Mapping[str, Tensor], captures: Captures, after: After | None = None) -> Output:
        capture, stream = captures.get("image", Capture()), Stream(self.layout)
        x = self.vision.embeddings(inputs["image"])
        if hasattr(self.vision, "pre_layrnorm"):
            x = self.vision.pre_layrnorm(x)
        for k, layer in enumerate(self.layers):
            x = followed(self._through(layer, x), k, after)
            if k in capture.hidden:
                stream.hidden[k] = x
        return Output({"image": stream}, Logits(x, lambda hidden: hidden))

    def _through(self, layer: Any, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training:
            return _first(checkpoint(layer, x, None, use_reentrant=False))
        return _first(layer(x, None))

    def groups(self) -> dict[str, Callable[[str], bool]]:
        return {"mixers": lambda name: False}

    def units(self) -> list[nn.Module]:
        return list(self.layers)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def plan(self, tower: Tower) -> Iterator[Take | Dropped]:
        """All of it, whatever is cloned of others: a kept tower is kept whole."""
        embedding, into = tower.embedding, f"stock.{self.inside}"
        assert isinstance(embedding, ImageEmbedding), "a teacher's image tower"
        yield Take(
            target=f"{into}embeddings.patch_embedding.weight",
            source="embedding.weight",
            tensor=embedding.weight,
        )
        if embedding.bias is not None:
            yield Take(
                target=f"{into}embeddings.patch_embedding.bias",
                source="embedding.bias",
                tensor=embedding.bias,
            )
        if len(embedding.special):
            yield Take(
                target=f"{into}embeddings.class_embedding",
                source="embedding.special.cls",
                tensor=embedding.special[0],
            )
        yield Take(
            target=f"{into}embeddings.position_embedding.weight",
            source="embedding.position",
            tensor=embedding.position,
        )
        if embedding.norm is not None:
            yield from take_norm(f"{into}pre_layrnorm", "embedding.norm", embedding.norm)
        for t in range(self.num_layers):
            attention, mlp = tower.sublayers[2 * t], tower.sublayers[2 * t + 1]
            assert isinstance(attention, Attention) and isinstance(mlp, Mlp), "a Transformer's block"
            yield from _plan_block(f"{into}encoder.layers.{t}", f"blocks.{t}", attention, mlp)


def _plan_block(into: str, source: str, attention: Attention, mlp: Mlp) -> Iterator[Take]:
    yield from take_norm(f"{into}.layer_norm1", f"{source}.attention.norm", attention.norm)
    for mine, theirs in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o")):
        affine = getattr(attention, theirs)
        yield from take_affine(f"{into}.self_attn.{mine}", f"{source}.attention.{theirs}", affine)
    yield from take_norm(f"{into}.layer_norm2", f"{source}.mlp.norm", mlp.norm)
    yield from take_affine(f"{into}.mlp.fc1", f"{source}.mlp.up", mlp.up)
    yield from take_affine(f"{into}.mlp.fc2", f"{source}.mlp.down", mlp.down)


def _first(made: Any) -> Tensor:
    """The stream, which older versions give with other things."""
    found: Tensor = made if isinstance(made, torch.Tensor) else made[0]
    return found


def image_tower(config: Any) -> nn.Module:
    """The teacher's own of its config, or the `vim` or `ssd_vit` that a timm wrapper names."""
    if config.model_type != "timm_wrapper":
        return KeptTower(config)
    from ...ecosystems.timm import create_timm

    return create_timm(config.architecture, pretrained=False, num_classes=0, **config.model_args)
