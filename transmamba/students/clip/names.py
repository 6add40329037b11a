"""The students `clip`, made after a teacher, and `open_clip`, any model of that library as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from ...config.registry import STUDENTS
from ...core.preprocessing import Preprocessing
from ...core.tower import StudentSpec
from ...ecosystems import hub
from ...ecosystems import open_clip as library
from ...ecosystems.open_clip_names import require
from ...ecosystems.open_clip_tokenizer import OpenClipTokenizer
from ...ecosystems.origin import Origin
from ...ecosystems.timm import check_options
from ...errors import UserError


@dataclass(frozen=True, kw_only=True)
class ImageTower:
    """What becomes of the image tower.

    kind:   `vim`, `ssd_vit`, or `vit`: with attention, of the teacher's shape its own tower
    fresh:  start from random weights, whatever `init` says
    attention_layers: of an ssd_vit, the blocks that keep attention
    kwargs: of its constructor, as of the student of that kind; they go before the teacher's shape. With
        num_frames it scans all frames of a video at once, in place of the mean of their embeddings
    """

    kind: Literal["vim", "ssd_vit", "vit"] = "vim"
    fresh: bool = False
    attention_layers: tuple[int, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.kwargs)
        if self.attention_layers and self.kind != "ssd_vit":
            raise UserError(f"attention_layers are for an ssd_vit, not for a {self.kind}; leave them out")


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """What becomes of the text tower.

    kind:  `kept`, the teacher's own (one that no view expresses runs its own code), or `mamba2`, causal
    fresh: start from random weights, whatever `init` says
    kwargs: of mamba2, in place of the teacher's number: layers
    """

    kind: Literal["kept", "mamba2"] = "kept"
    fresh: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kwargs and self.kind != "mamba2":
            raise UserError(
                f"kwargs are for mamba2; a {self.kind} tower has the teacher's shape, leave them out"
            )


@STUDENTS.register("clip")
@dataclass(frozen=True, kw_only=True)
class Clip:
    """An open_clip model after a CLIP or SigLIP teacher, one of its towers or both with Mamba in place of
    attention. Which weights begin as the teacher's, `init` says, of the text tower and the projections too;
    what is trained, each stage's `trainable`: image, text, mixers, head (the projections), scale.

    image: its image tower
    text:  its text tower
    """

    group_names: ClassVar[tuple[str, ...]] = ("image", "text", "mixers", "head", "scale")

    image: ImageTower = field(default_factory=ImageTower)
    text: TextTower = field(default_factory=TextTower)

    def build(self, spec: StudentSpec) -> nn.Module:
        """Raises UserError without a teacher of both towers, and for one whose shape cannot be taken."""
        require("student clip")
        if spec.view is None:
            raise UserError(
                "student clip takes its shape from a teacher; name one, or write student open_clip and a "
                "model_cfg"
            )
        from .model import ClipStudent
        from .shapes import model_cfg

        cfg = model_cfg(self, spec)
        try:
            return ClipStudent(cfg, self)
        except Exception as error:
            raise UserError(f"open_clip cannot build this student: {hub.explain(error)}") from error

    def preprocessing(self) -> Preprocessing:
        raise UserError("student clip takes its preprocessing from a teacher; name one")


@STUDENTS.register("open_clip")
@dataclass(frozen=True, kw_only=True)
class OpenClipModel:
    """Any open_clip model, to train or to fine-tune as it is: teachers, baselines, converted students.

    model: `NAME` or `NAME/TAG`, a folder or hf-hub:ID with open_clip_config.json
    model_cfg: in place of it, what open_clip builds a model from (embed_dim, vision_cfg, text_cfg)
    pretrained: with the weights of `model`
    image_size: pixels a side of its pictures, where they are not to be those of `model`; its positions are
        resized
    num_frames: let the image tower of a converted student (vim, ssd_vit) scan all frames of a video at once,
        made for so many of them: its weights as they are, temporal positions of 0; left out: as it was saved
    """

    as_it_is: ClassVar[bool] = True  # it takes no teacher's weights

    model: str | None = None
    model_cfg: dict[str, Any] | None = None
    pretrained: bool = False
    image_size: int | None = None
    num_frames: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and (self.model is None or self.image_size < 1):
            raise UserError(
                f"image_size {self.image_size}: write pixels a side, at least 1, beside `model`; a model_cfg "
                "has its own in vision_cfg"
            )
        if self.num_frames is not None and self.num_frames < 2:
            raise UserError(f"num_frames {self.num_frames}: write at least 2; leave it out for pictures")
        if (self.model is None) == (self.model_cfg is None):
            raise UserError("write one of model and model_cfg")
        if self.pretrained and self.model is None:
            raise UserError("pretrained goes with a model; leave it out beside model_cfg")

    def build(self, spec: StudentSpec) -> nn.Module:
        if self.model is not None:
            model = self._created(pretrained=self.pretrained)
        else:
            model = _made(self.model_cfg or {})
        if self.num_frames is not None:
            from .changed import scan_frames

            scan_frames(model, self.num_frames)
        if spec.preprocessing is not None:
            _check_alike(library.preprocessing(model).text, spec.preprocessing.text)
        return model

    def preprocessing(self) -> Preprocessing:
        """What its images and texts look like, found out without its weights."""
        if self.model is not None:
            return library.preprocessing(self._created(pretrained=False, device="meta"))
        return library.preprocessing(_made(self.model_cfg or {}))

    def _created(self, *, pretrained: bool, device: str = "cpu") -> nn.Module:
        assert self.model is not None, "the caller asked"
        source, size = library.source_of(self.model), self.image_size
        model = library.create_open_clip(source, pretrained=pretrained, device=device, image_size=size)
        if size is not None:
            from .changed import say_image_size

            say_image_size(model, size)
        return model


def _check_alike(mine: Any, theirs: Any) -> None:
    """Raises UserError where a teacher's texts, which both are given, are not read as the student's are:
    another tokenizer's numbers mean other words."""
    if mine is None or theirs is None:
        return
    if mine.context != theirs.context or (mine.name is None) != (theirs.name is None):
        raise UserError(
            f"student open_clip reads texts of {mine.context} tokens by the tokenizer of "
            f"{mine.name or 'CLIP'}, the teacher of {theirs.context} by that of {theirs.name or 'CLIP'}; "
            "choose a teacher that reads alike"
        )


def _made(model_cfg: dict[str, Any]) -> nn.Module:
    """An untrained model of open_clip's. Raises UserError where open_clip cannot build it."""
    model = library.build_open_clip(model_cfg)
    library.say_made_from(model, model_cfg, Origin(), OpenClipTokenizer.of(model_cfg.get("text_cfg") or {}))
    return model
