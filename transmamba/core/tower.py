"""What every student offers beside its own library's interface: one tower a stream, and what the stages
need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .frames import embed_frames
from .layout import Layout
from .output import Capture, Captures, Context, Logits, Output


@runtime_checkable
class Tower(Protocol):
    """One stream of a student, as the distiller, the aligner and the subcloner see it."""

    @property
    def layout(self) -> Layout: ...

    @property
    def width(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def parts(self) -> Mapping[str, int]:
        """Inner tensors of a mixer that a capture may name, with their widths: `B`, `C` ..."""

    def sources(self, kinds: Sequence[str]) -> dict[int, int]:
        """Student mixer -> number of the teacher sublayer whose work it takes over; `kinds` are the
        teacher's, `attention` or `mlp`."""

    def mixer(
        self, k: int, hidden: Tensor, context: Context, capture: Capture
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What mixer k adds to the residual stream `hidden` (B, L, D), and those of its inner tensors that
        `capture` names."""


@runtime_checkable
class Student(Protocol):
    """A Mamba student."""

    @property
    def towers(self) -> Mapping[str, Tower]: ...

    def run(self, inputs: Mapping[str, Tensor], captures: Captures) -> Output:
        """One forward pass with what `captures` names; a tower whose input is absent is not run."""

    def plan(self, view: Any, select: Any) -> Iterator[Any]:
        """`Take`s and `Dropped`s: which tensor of a teacher's view each of the student's own takes, and
        how."""

    def groups(self) -> Mapping[str, Callable[[str], bool]]:
        """Groups of parameters that a stage may train (`mixers`, `head`, `image` ...), each a test of their
        names."""

    def units(self) -> list[nn.Module]:
        """The modules that are sharded or gathered whole: each is called, never entered."""


def run_plain(model: Any, inputs: Mapping[str, Tensor]) -> Output:
    """What a model that is no `Student` gives: a dual encoder with open_clip's interface (encode_image,
    encode_text) the embeddings of what there is; any classifier of timm or Hugging Face the logits of the one
    input that there is. Raises UserError for several: nothing says which of them it reads."""
    if hasattr(model, "encode_image") and hasattr(model, "encode_text"):
        return _encoded(model, inputs)
    if len(inputs) != 1:
        raise UserError(
            f"{type(model).__name__} is no student of towers; the batch has {', '.join(inputs) or 'no'} "
            "inputs; give it `run` (docs/adding_a_part.md), or a task with one input"
        )
    (only,) = inputs.values()
    made = model(only)
    return Output(logits=Logits(getattr(made, "logits", made), lambda logits: logits))  # Hugging Face wraps


def _encoded(model: Any, inputs: Mapping[str, Tensor]) -> Output:
    output = Output(scalars=similarity_scalars(model))
    for tower, encode in (("image", model.encode_image), ("text", model.encode_text)):
        if tower in inputs:
            output.embeddings[tower] = F.normalize(encode(inputs[tower]), dim=-1)
    if "frames" in inputs:
        run = partial(_encoded, model)
        output.embeddings["image"] = embed_frames(inputs, {}, run, scan_of(model))
    return output


def scan_of(model: Any) -> Callable[[Tensor], Tensor] | None:
    """`encode_image` of a dual encoder with open_clip's interface, where its image tower reads all frames of
    a video at once, (B, T, C, H, W): it says for how many it was made, `num_frames`. None where it reads
    pictures alone."""
    visual = getattr(model, "visual", None)
    frames = getattr(getattr(visual, "trunk", visual), "num_frames", 1)
    return model.encode_image if frames > 1 else None


def similarity_scalars(model: Any) -> dict[str, Tensor]:
    """`scale` and, where there is one, `bias` of a dual encoder's similarities. Without a bias a scale that
    is learnt is brought back to 100 at most, as in CLIP (arXiv 2103.00020, section 2.5): the number itself,
    for one that were only read so would have no gradient to come back by."""
    bias, log = getattr(model, "logit_bias", None), model.logit_scale
    if bias is not None:
        return {"scale": log.reshape(()).exp(), "bias": bias.reshape(())}
    if log.requires_grad:
        with torch.no_grad():
            log.clamp_(max=math.log(100))
    return {"scale": log.reshape(()).exp()}


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """What a student is built for.

    view:          the teacher's, whose shape the student follows where it is told no other; None without one
    preprocessing: of the teacher; None without one
    num_classes:   of the task; None where there are none
    points:        a `core.points.PointShape`, of a task whose inputs are such; None of any other
    dtype:         of its numbers, where it is not trained and its kind can have another than float32
    """

    view: Any = None
    preprocessing: Any = None
    num_classes: int | None = None
    points: Any = None
    dtype: torch.dtype | None = None
