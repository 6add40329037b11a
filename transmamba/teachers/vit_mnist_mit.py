"""The small MNIST ViT of sonjuhy/VLMStudy (MIT), as an example of a checkpoint with a layout of its own.

Each block has extra q/k/v linears in front of `nn.MultiheadAttention`, one LayerNorm shared by attention and
MLP, and the classifier reads the class token without a final norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import TEACHERS
from ..core.layout import Grid
from ..core.preprocessing import Preprocessing
from ..errors import UserError
from ..views.embeddings import ImageEmbedding
from ..views.heads import Classifier
from ..views.sublayers import Affine, Attention, Mlp, Norm
from ..views.view import Tower, View
from .teacher import Teacher

_HEADS = 7


@TEACHERS.register("vit_mnist_mit")
@dataclass(frozen=True, kw_only=True)
class VitMnist:
    """A small MNIST ViT of a layout of its own: an example of a teacher that no library knows.

    checkpoint: path of vit_mnist_model.pth, a plain state dict
    """

    checkpoint: str

    def build(self) -> Teacher:
        try:
            state = torch.load(Path(self.checkpoint).expanduser(), map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(
                f"teacher checkpoint {self.checkpoint!r} does not exist; write teacher.checkpoint=FILE"
            ) from None
        except Exception as error:
            raise UserError(f"teacher checkpoint {self.checkpoint!r} cannot be read: {error}") from error
        if not isinstance(state, dict) or "embedding.div_img.weight" not in state:
            raise UserError(
                f"teacher checkpoint {self.checkpoint!r} has another layout than vit_mnist_model.pth"
            )
        return Teacher(
            view_of(state),
            source="vit_mnist_mit",
            preprocessing=Preprocessing(
                input_size=(1, 28, 28), mean=(0.1307,), std=(0.3081,), interpolation="bilinear"
            ),
            num_params=sum(tensor.numel() for tensor in state.values()),
        )


def view_of(state: dict[str, Tensor]) -> View:
    """The canonical view of the state dict; the doubled projections are multiplied out in float64."""
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
    position = state["embedding.position_div_imgs"][0]
    side = round((len(position) - 1) ** 0.5)
    embedding = ImageEmbedding(
        weight=state["embedding.div_img.weight"],
        bias=state["embedding.div_img.bias"],
        special=state["embedding.cls_token"][0],
        position=position,
    )
    sublayers = [sublayer for index in range(depth) for sublayer in _block(state, f"layers.{index}.")]
    tower = Tower(embedding, tuple(sublayers), None, Grid(side, side, special=(("cls", 0),)))
    head = Classifier((("cls", Affine(state["classifer.weight"], state["classifer.bias"])),))
    return View({"image": tower}, {"image": head})


def _block(state: dict[str, Tensor], prefix: str) -> tuple[Attention, Mlp]:
    mha = f"{prefix}multihead_attention."
    norm = Norm(state[f"{prefix}norm.weight"], state[f"{prefix}norm.bias"], 1e-5)
    inner_weights = state[f"{mha}multihead_attention.in_proj_weight"].chunk(3)
    inner_biases = state[f"{mha}multihead_attention.in_proj_bias"].chunk(3)
    outer = [
        Affine(state[f"{mha}{name}.weight"], state[f"{mha}{name}.bias"]) for name in ("query", "key", "value")
    ]
    q, k, v = (
        _compose(Affine(weight, bias), first)
        for weight, bias, first in zip(inner_weights, inner_biases, outer, strict=True)
    )
    out = f"{mha}multihead_attention.out_proj."
    return (
        Attention(
            norm=norm, q=q, k=k, v=v, o=Affine(state[f"{out}weight"], state[f"{out}bias"]), heads=_HEADS
        ),
        Mlp(
            norm=norm,
            up=Affine(state[f"{prefix}FFL.0.weight"], state[f"{prefix}FFL.0.bias"]),
            down=Affine(state[f"{prefix}FFL.3.weight"], state[f"{prefix}FFL.3.bias"]),
            act=F.gelu,
        ),
    )


def _compose(second: Affine, first: Affine) -> Affine:
    assert first.bias is not None and second.bias is not None, "every projection of this layout has a bias"
    weight = second.weight.double() @ first.weight.double()
    bias = second.weight.double() @ first.bias.double() + second.bias.double()
    return Affine(weight.float(), bias.float())
