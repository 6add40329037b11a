"""An image tower that was made for pictures reads videos from now on."""

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
    cfg, origin, tokenizer = library.made_from(model)
    assert cfg is not None, "loaded or built here"
    name, _, tag = cfg["vision_cfg"].get("timm_model_name", "").partition(".")
    if not isinstance(trunk, ScansFrames) or not tag:
        raise UserError(
            f"student.num_frames {num_frames}: this image tower reads a video frame by frame; take a student "
            "that was converted with student clip, or leave num_frames out for the mean over frames"
        )
    try:
        trunk.set_num_frames(num_frames)
    except ValueError as error:
        raise UserError(f"student.num_frames {num_frames}: {error}") from error
    shaped = named(name, {**arguments_of(tag), "num_frames": num_frames})
    vision = {**cfg["vision_cfg"], "timm_model_name": shaped}
    library.say_made_from(model, {**cfg, "vision_cfg": vision}, origin, tokenizer)
