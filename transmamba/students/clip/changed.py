"""An image tower that was made for pictures of one size reads others, or videos, from now on."""

from __future__ import annotations

from typing import Any

from ...ecosystems import open_clip as library
from ...errors import UserError
from ..frames import ScansFrames
from ..shape_tag import arguments_of, named


def scan_frames(model: Any, num_frames: int) -> None:
    """Let the image tower of an open_clip model scan videos of `num_frames` frames, its weights as they are,
    and say so where it is saved. Raises UserError for a tower that embeds pictures alone."""
    trunk = getattr(model.visual, "trunk", None)
    if not isinstance(trunk, ScansFrames) or not _tag(model):
        raise UserError(
            f"student.num_frames {num_frames}: this image tower reads a video frame by frame; take a student "
            "that was converted with student clip, or leave num_frames out for the mean over frames"
        )
    try:
        trunk.set_num_frames(num_frames)
    except ValueError as error:
        raise UserError(f"student.num_frames {num_frames}: {error}") from error
    _say(model, num_frames=num_frames)


def say_image_size(model: Any, size: int) -> None:
    """Write on a model that was created for pictures of `size` pixels what its shape tag says of it. Raises
    UserError for a size that is no whole number of patches."""
    vision = _cfg(model)["vision_cfg"]
    patch = vision.get("patch_size")
    if _tag(model):
        patch = arguments_of(_tag(model)).get("patch_size", patch)
    if isinstance(patch, int) and size % patch:
        raise UserError(
            f"student.image_size {size}: its patches have {patch} pixels; write a multiple, such as "
            f"{max(1, round(size / patch)) * patch}"
        )
    if _tag(model):
        _say(model, img_size=size)


def _cfg(model: Any) -> Any:
    cfg = library.made_from(model)[0]
    assert cfg is not None, "loaded or built here"
    return cfg


def _tag(model: Any) -> str:
    """The tag of its image tower's timm name, where it is one of ours."""
    name, _, tag = _cfg(model)["vision_cfg"].get("timm_model_name", "").partition(".")
    return tag if name.endswith("_shaped") else ""


def _say(model: Any, **arguments: Any) -> None:
    """Change arguments in the shape tag that the model is saved with."""
    cfg, origin, tokenizer = library.made_from(model)
    assert cfg is not None, "loaded or built here"
    name, _, tag = cfg["vision_cfg"]["timm_model_name"].partition(".")
    vision = {**cfg["vision_cfg"], "timm_model_name": named(name, {**arguments_of(tag), **arguments})}
    library.say_made_from(model, {**cfg, "vision_cfg": vision}, origin, tokenizer)
