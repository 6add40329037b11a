"""An image student as the tower of something larger: what timm makes it of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from ..core.tower import StudentSpec
from ..ecosystems.timm import explained
from ..errors import UserError
from .sizes import pair
from .ssd_vit.names import SsdVit
from .timm_arguments import Asked
from .vim.names import Vim

# where a recipe asks for the image tower
ASKED = Asked("student.image", "student.image.kind")


class ImagePart(Protocol):
    """What a recipe asks of the tower, as the student of that kind is asked."""

    @property
    def kind(self) -> str: ...

    @property
    def attention_layers(self) -> Sequence[int]: ...

    @property
    def kwargs(self) -> Mapping[str, Any]: ...


def part_arguments(config: ImagePart, spec: StudentSpec) -> dict[str, Any]:
    """Constructor arguments of a Vim, or of an ssd_vit, one with attention alone where the kind is `vit`: of
    the teacher's pictures, without classes."""
    if config.kind == "vim":
        arguments = Vim(kwargs=dict(config.kwargs)).arguments(spec, ASKED)
    else:
        layers = tuple(config.attention_layers)
        arguments = SsdVit(attention_layers=layers, kwargs=dict(config.kwargs)).arguments(spec)
    if config.kind == "vit":
        arguments["attention_layers"] = list(range(arguments["depth"]))
    arguments.pop("num_classes")
    height, width = spec.preprocessing.input_size[1:]
    arguments["img_size"] = height if height == width else (height, width)
    return {key: value for key, value in arguments.items() if value is not None}


def check_part(config: ImagePart, spec: StudentSpec, whole: str, resized: str) -> None:
    """Raises UserError for options of an image student that no tower has.

    whole: what it is a tower of
    resized: what to do for pictures of another size, in brackets
    """
    kwargs = config.kwargs
    size = list(spec.preprocessing.input_size[1:])
    wanted = list(pair(kwargs.get("img_size", size)))
    if wanted != size:
        raise UserError(
            f"{ASKED.at}.kwargs.img_size is {kwargs['img_size']}, the teacher's pictures are "
            f"{size[0]} x {size[1]}; leave it out{resized}"
        )
    if "num_classes" in kwargs:
        raise UserError(
            f"{ASKED.at}.kwargs.num_classes is {kwargs['num_classes']}, but a {whole} tells no classes "
            "apart; leave it out"
        )


def try_out(name: str, arguments: Mapping[str, Any]) -> Any:
    """The tower on the meta device. Raises UserError for what its constructor refuses, in its own words."""
    import timm

    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except Exception as error:  # whatever timm, torch and our own checks raise
        raise UserError(f"{ASKED.at}.kwargs: {explained(error, arguments)}") from error
