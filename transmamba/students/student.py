"""What every student offers beside its own ecosystem's interface, and how it is saved.

A student is an `nn.Module` (for images: a timm model) with the members of `Student`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from ..core.output import Capture, Output, TokenLayout
from ..core.preprocessing import Preprocessing
from ..subcloning.selection import Selection
from ..views.view import View

Sublayer = Literal["attention", "mlp"]
# how a tensor was taken from the teacher's: as it is; in another order; some positions more than once;
# interpolated to another patch or grid; without some positions. Where several happened, the last one counts
Kind = Literal["copied", "permuted", "repeated", "resampled", "sliced"]

# what timm gives a model's constructor beside the arguments that rebuild it
_NOT_SAVED = frozenset(
    [
        "num_classes",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_model_args",
        "cache_dir",
        "features_only",
        "device",
        "dtype",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Take:
    """One student tensor (or the part `into` of it) taken from one teacher tensor.

    index: per dimension of the source, the positions to take (repeats allowed) or None for all of them
    scale: a factor, or one per kept position of the last dimension
    made:  what the plan itself did to the source before that
    layer: the student layer it belongs to; None for embeddings, final norm and head
    """

    target: str
    source: str
    tensor: Tensor
    index: tuple[Tensor | None, ...] = ()
    into: slice | None = None
    scale: Tensor | float = 1.0
    layer: int | None = None
    made: Kind = "copied"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A teacher tensor for which the student has no place; `layer` as in `Take`."""

    source: str
    why: str
    layer: int | None = None


@runtime_checkable
class Student(Protocol):
    """A Mamba student, as the distiller, the aligner and the subcloner see it."""

    num_classes: int
    cloned_by_default: Literal["all", "half"]

    @property
    def layout(self) -> TokenLayout: ...

    @property
    def width(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def state_width(self) -> int:
        """Channels of a mixer's B and C."""

    def run(self, images: Tensor, capture: Capture) -> Output:
        """One forward pass with what `capture` names."""

    def mixer(self, k: int, hidden: Tensor, capture: Capture) -> tuple[Tensor, dict[str, Tensor]]:
        """What mixer k adds to the residual stream `hidden` (B, L, D), and its inner tensors.

        Where `capture` asks for the mixer's branches, `spread` (B, L, D) is among them: output + spread and
        output - spread are the forward and the backward branch, their mean the output."""

    def mixer_sources(self, num_blocks: int) -> dict[int, tuple[int, Sublayer]]:
        """Student mixer -> (teacher block, sublayer) whose work it takes over."""

    def mixer_parameters(self) -> set[str]:
        """Names of the parameters that teacher-forced alignment trains."""

    def plan(self, view: View, select: Selection) -> Iterator[Take | Dropped]:
        """Which canonical tensor each of the student's own tensors takes, and how."""


def feature_pairs(num_layers: int, num_blocks: int) -> dict[int, int]:
    """Student layer -> teacher block whose residual streams are compared: block t with layer
    floor((t + 1) Ls / Lt) - 1 [proposal D4 of the method notes]; for Vim with 2 layers a block, 2 t + 1.

    Where several blocks share a layer, the first has it: it is as deep in the teacher as the layer is in the
    student."""
    pairs: dict[int, int] = {}
    for t in range(num_blocks):
        pairs.setdefault((t + 1) * num_layers // num_blocks - 1, t)
    return {k: t for k, t in pairs.items() if k >= 0}


def depth_map(num_layers: int, num_sources: int) -> list[int]:
    """Source sublayer for each of `num_layers` student layers: repeated in order where the student is deeper;
    where it is shallower, taken from the middle, for both ends matter most (Samragh et al., arXiv
    2312.09299)."""
    if num_layers >= num_sources:
        return [layer * num_sources // num_layers for layer in range(num_layers)]
    head = (num_layers + 1) // 2
    return [*range(head), *range(num_sources - (num_layers - head), num_sources)]


def model_args(model: nn.Module) -> dict[str, Any]:
    """The keyword arguments that rebuild this timm model, beside its architecture and number of classes."""
    args = dict(getattr(model, "transmamba_args", None) or {})
    args.update(getattr(model, "_model_args", None) or {})
    args.pop("global_pool", None)  # reset_classifier may have changed it since
    pool = getattr(model, "global_pool", None)
    if isinstance(pool, str):
        args["global_pool"] = pool
    return {key: value for key, value in args.items() if key not in _NOT_SAVED}


def save_model(model: nn.Module, folder: Path, preprocessing: Preprocessing | None = None) -> None:
    """Write config.json and model.safetensors as the model's own library does, with the preprocessing it was
    trained with: `timm.create_model("local-dir:FOLDER", pretrained=True)`, or `from_pretrained(FOLDER)`."""
    folder.mkdir(parents=True, exist_ok=True)
    saved: Any = model
    if hasattr(saved, "save_pretrained"):
        saved.save_pretrained(folder)
        if preprocessing is not None:
            _image_processor(preprocessing).save_pretrained(folder)
        return
    from timm.models import save_for_hf

    if preprocessing is not None:
        saved.pretrained_cfg = {**saved.pretrained_cfg, **preprocessing.to_pretrained_cfg()}
        saved.default_cfg = saved.pretrained_cfg
    save_for_hf(saved, str(folder), model_args=model_args(saved), safe_serialization=True)


def _image_processor(preprocessing: Preprocessing) -> Any:
    from transformers import ViTImageProcessor

    _, height, width = preprocessing.input_size
    resample = {"nearest": 0, "bilinear": 2, "bicubic": 3}[preprocessing.interpolation]
    return ViTImageProcessor(
        size={"height": height, "width": width},
        image_mean=list(preprocessing.mean),
        image_std=list(preprocessing.std),
        resample=resample,
    )
