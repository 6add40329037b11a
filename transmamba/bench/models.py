"""What `bench inference` times: a teacher at a size and students in its shape, their weights random."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..config import load as configs
from ..config.file import apply_override
from ..config.registry import STUDENTS
from ..core.layout import Grid
from ..core.tower import StudentSpec
from ..ecosystems import open_clip as library
from ..ecosystems.folders import model_folder
from ..ecosystems.open_clip_tokenizer import OpenClipTokenizer
from ..ecosystems.origin import Origin
from ..ecosystems.sources import Source, read_source
from ..ecosystems.timm import create_timm
from ..errors import UserError
from ..subcloning.convert import build_student, student_models
from ..teachers.load import adapt_teacher
from ..teachers.open_clip import OpenClip
from ..teachers.teacher import Teacher
from ..teachers.timm_vit import check_known

_PATCH = 16  # pixels, where a vision_cfg does not say


@dataclass(frozen=True)
class Wanted:
    """A student as a word names it: `vim`, `vim:gate_bias=true:embed_dim=128`.

    kind:   before the first colon
    kwargs: of its constructor
    """

    kind: str
    kwargs: Mapping[str, Any]


def read_students(words: Sequence[str]) -> dict[str, Wanted]:
    """By their words. Raises UserError for one that is there twice, and for options that are no
    key=value."""
    found: dict[str, Wanted] = {}
    for word in words:
        kind, *options = word.split(":")
        if word in found:
            raise UserError(f"students: {word!r} is there twice; write each once")
        kwargs: dict[str, Any] = {}
        for option in options:
            _override(kwargs, option, f"students: {word!r}: {option!r}", "vim:embed_dim=128")
        found[word] = Wanted(kind, kwargs)
    return found


@dataclass(frozen=True)
class Timed:
    """module: on images (B, C, H, W); tokens: of an image"""

    module: nn.Module
    tokens: int


class Models:
    """A teacher and its students at any size.

    teacher:  a timm ViT or its folder; an open_clip name, folder or id, of which the image tower is timed
    students: by their words, as `read_students` gives them
    options:  key=value words for the model_cfg of an open_clip teacher, such as vision_cfg.layers=8

    Raises UserError for a teacher that is neither, and options of a timm model.
    """

    def __init__(self, teacher: str, students: Mapping[str, Wanted], options: Sequence[str] = ()) -> None:
        self.name, self.students, self.cfg = teacher, students, None
        source = read_source(teacher)
        if library.recognise(source):
            self.cfg = _model_cfg(source, options)
        elif options:
            raise UserError(
                f"{options[0]}: options are of an open_clip model's model_cfg, and {teacher} is none"
            )
        elif not model_folder(teacher):
            check_known(teacher)

    def at(self, size: int) -> tuple[dict[str, Timed], tuple[int, int, int]]:
        """The teacher (as `teacher`) and the students for images of `size` pixels, and one image's shape.
        Raises UserError for a size or a student that cannot be made."""
        model, teacher = self._teacher(size)
        layout = teacher.view.towers["image"].layout
        assert isinstance(layout, Grid), "images are read"
        made = {"teacher": model}
        for word, wanted in self.students.items():
            made[word] = _tower(word, wanted, teacher) if self.cfg is not None else _student(wanted, teacher)
        timed = {}
        for word, module in made.items():
            own = getattr(getattr(module, "trunk", module), "layout", layout)
            timed[word] = Timed(module, own.length)
        return timed, teacher.preprocessing.input_size

    def _teacher(self, size: int) -> tuple[nn.Module, Teacher]:
        """What is timed of it, and itself."""
        if self.cfg is not None:
            built = _open_clip(self.name, self.cfg, size)
            return built.visual, OpenClip.describe(built, source=self.name)
        model: Any = create_timm(self.name, pretrained=False, img_size=size)
        _check_patch(self.name, size, model.patch_embed.patch_size)
        return model, adapt_teacher(model)


def _student(wanted: Wanted, teacher: Teacher) -> nn.Module:
    """A kind in the teacher's shape; a timm name as it is, whatever its patch, on the teacher's images."""
    if wanted.kind not in student_models():
        return build_student(wanted.kind, teacher, **wanted.kwargs)
    channels, height, width = teacher.preprocessing.input_size
    given = dict(img_size=(height, width), in_chans=channels, num_classes=teacher.num_classes)
    return create_timm(wanted.kind, pretrained=False, **{**given, **wanted.kwargs})


def _tower(word: str, wanted: Wanted, teacher: Teacher) -> nn.Module:
    """The image tower of a clip student, with its projection."""
    image = {"kind": wanted.kind, "kwargs": dict(wanted.kwargs)}
    config = configs.parse(STUDENTS["clip"], {"image": image}, f"students: {word}")
    built: Any = config.build(StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing))
    return built.visual


def _model_cfg(source: Source, options: Sequence[str]) -> dict[str, Any]:
    """Of an open_clip model, without its weights, changed by key=value words."""
    cfg, _, _ = library.made_from(library.create_open_clip(source, pretrained=False, device="meta"))
    assert cfg is not None, "said when it was made"
    for option in options:
        _override(cfg, option, f"{option!r}", "vision_cfg.layers=8")
    return cfg


def _open_clip(name: str, cfg: Mapping[str, Any], size: int) -> Any:
    """The model for images of `size` pixels."""
    own = copy.deepcopy(dict(cfg))
    if not isinstance(own.get("vision_cfg"), dict):
        raise UserError(f"vision_cfg is {own.get('vision_cfg')!r}; write its keys, as vision_cfg.layers=8")
    own["vision_cfg"]["image_size"] = size
    if "timm_model_name" not in own["vision_cfg"]:
        _check_patch(name, size, (own["vision_cfg"].get("patch_size", _PATCH),))
    model: Any = library.build_open_clip(own)
    if hasattr(getattr(model.visual, "trunk", None), "patch_embed"):  # timm is told no size when it makes one
        _check_patch(name, size, model.visual.trunk.patch_embed.patch_size)
        model.visual.set_input_size(size)
    library.say_made_from(model, own, Origin(), OpenClipTokenizer.of(own.get("text_cfg") or {}))
    return model


def _check_patch(name: str, size: int, patch: Sequence[int]) -> None:
    if size < max(patch):
        raise UserError(f"images of {size} pixels hold no patch of {name}; write larger sizes")


def _override(values: dict[str, Any], option: str, where: str, example: str) -> None:
    """Raises UserError for what is no key=value, saying `where` it stands."""
    if "=" not in option:
        raise UserError(f"{where} is no key=value; write such as {example}")
    try:
        apply_override(values, option)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
