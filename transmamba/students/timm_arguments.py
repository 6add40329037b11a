"""What timm is told of a student: its `default_cfg`, and the arguments that follow from teacher and data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..core.layout import Grid
from ..core.preprocessing import PicturesAndText, Preprocessing
from ..core.tower import StudentSpec
from ..errors import UserError
from ..views.embeddings import ImageEmbedding, Spliced
from ..views.view import Tower, View
from .meant import wrong_teacher


@dataclass(frozen=True)
class Asked:
    """Where a recipe asks for an image student, for what is refused to say what to write instead.

    at:   before the names of its options
    kind: the option that chooses it
    """

    at: str = "student"
    kind: str = "student.name"


ALONE = Asked()


def default_cfg(size: int = 224, num_classes: int = 1000) -> dict[str, Any]:
    """For square RGB images of `size` pixels, without pretrained weights, so without a licence of theirs."""
    return {
        "url": "",
        "num_classes": num_classes,
        "input_size": (3, size, size),
        "pool_size": None,
        "crop_pct": 0.9 if size == 224 else 1.0,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def following(
    kind: str,
    model: str | None,
    kwargs: Mapping[str, Any],
    shape_of: Callable[[View], dict[str, Any]],
    spec: StudentSpec,
) -> dict[str, Any]:
    """Constructor arguments: classes, channels and pixels; without `model` also the teacher's shape.

    Raises UserError where a shape is wanted and there is no teacher, and for a model whose patches, fixed by
    its name, are not the teacher's.
    """
    classes = getattr(spec.view, "num_classes", None) if spec.num_classes is None else spec.num_classes
    arguments: dict[str, Any] = dict(num_classes=classes or 0)
    if isinstance(spec.preprocessing, Preprocessing | PicturesAndText):
        channels, *pixels = spec.preprocessing.input_size
        arguments |= dict(in_chans=channels, img_size=pixels)
    if model is None:
        if spec.view is None:
            raise UserError(f"student {kind} takes its shape from a teacher; name one, or set student.model")
        arguments |= shape_of(spec.view)
    elif spec.view is not None and "patch_size" not in kwargs:
        _check_patch(model, image_tower(spec.view))
    return arguments


def _check_patch(model: str, tower: Tower) -> None:
    """Raises UserError where the patch in a model's name gives the student another number of tokens."""
    found = re.search(r"_patch(\d+)", model)
    theirs = tuple(tower.embedding.weight.shape[-2:])
    if found and theirs != (int(found[1]),) * 2:
        shown = theirs[0] if theirs[0] == theirs[1] else f"{theirs[0]} x {theirs[1]}"
        raise UserError(
            f"student.model {model} has patches of {found[1]} pixels, the teacher of {shown}: other tokens; "
            "leave student.model out to follow the teacher, or write "
            f"student.kwargs.patch_size={found[1]} to mean it"
        )


def image_tower(view: View) -> Tower:
    """Raises UserError for a teacher that reads no images."""
    if "image" not in view.towers:
        raise wrong_teacher("an image student needs a teacher of images", view)
    if any(isinstance(tower.embedding, Spliced) for tower in view.towers.values()):
        raise UserError(
            "this teacher is a LLaVA, whose image tower is read by a decoder, not by a head: no image "
            "student starts from it; write the student llava, with image.kind=vim or ssd_vit, or choose "
            "a classifier or a CLIP"
        )
    return view.towers["image"]


def image_embedding(view: View) -> tuple[ImageEmbedding, Grid]:
    """How the image tower begins, and where its tokens come from. Raises UserError for a teacher without
    one."""
    tower = image_tower(view)
    if not isinstance(tower.embedding, ImageEmbedding) or not isinstance(tower.layout, Grid):
        raise UserError("this teacher's image tower is no grid of patches, which an image student needs")
    return tower.embedding, tower.layout
