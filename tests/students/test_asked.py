"""What an image student refuses is said in the words of the recipe that asks for it: as a student of its own,
or as the image tower of a clip."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from tiny_clip import made

from transmamba.config.registry import STUDENTS
from transmamba.core.tower import StudentSpec
from transmamba.errors import UserError
from transmamba.students.clip.names import ImageTower
from transmamba.students.image_part import ASKED
from transmamba.students.timm_arguments import Asked
from transmamba.subcloning.subclone import SubcloneConfig, subclone
from transmamba.teachers.load import adapt_teacher
from transmamba.teachers.teacher import Teacher

pytest.importorskip("open_clip", reason="needs open_clip")

UNIFORM = SubcloneConfig(importance="uniform")


@pytest.fixture(scope="module")
def clip() -> Teacher:
    return adapt_teacher(made())


@pytest.fixture(scope="module")
def classifier() -> Teacher:
    shape = dict(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    torch.manual_seed(0)
    return adapt_teacher(timm.create_model("vit_tiny_patch16_224", **shape).eval())


def refused(teacher: Teacher, name: str, options: dict[str, Any]) -> str:
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing, num_classes=3)
    with pytest.raises(UserError) as caught:
        subclone(STUDENTS[name](**options).build(spec), teacher, UNIFORM)
    return str(caught.value)


# kind, options of its constructor, what is advised in the words that hold for both
WRONG = {
    "narrower": ("ssd_vit", {"embed_dim": 16}, "set {at}.kwargs.embed_dim=32, or {kind}=vim to shrink"),
    "heads": ("ssd_vit", {"num_heads": 4}, "set {at}.kwargs.num_heads=2"),
    "channels": ("ssd_vit", {"in_chans": 1}, "set {at}.kwargs.in_chans=3"),
    "channels of a vim": ("vim", {"in_chans": 1}, "set {at}.kwargs.in_chans=3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_student_of_its_own(classifier: Teacher, case: str) -> None:
    kind, kwargs, advice = WRONG[case]
    said = refused(classifier, kind, {"kwargs": kwargs})
    assert said.endswith(advice.format(at="student", kind="student.name"))


@pytest.mark.parametrize("case", WRONG)
def test_the_image_tower_of_a_clip(clip: Teacher, case: str) -> None:
    kind, kwargs, advice = WRONG[case]
    said = refused(clip, "clip", {"image": ImageTower(kind=kind, kwargs=kwargs)})
    assert said.endswith(advice.format(at="student.image", kind="student.image.kind"))


def test_rms_norms_and_what_is_advised() -> None:
    """A model of LayerNorms is refused for a teacher of RMSNorms; with the advice it is made."""
    shape = dict(img_size=8, patch_size=2, embed_dim=64, depth=2, num_heads=4, num_classes=3)
    torch.manual_seed(0)
    rms = adapt_teacher(timm.create_model("vit_tiny_patch16_224", norm_layer="rmsnorm", **shape).eval())
    options: dict[str, Any] = {"model": "ssd_vit_micro_patch2_8", "kwargs": {"depth": 2}}
    assert refused(rms, "ssd_vit", options).endswith("set student.kwargs.norm_layer=rmsnorm")
    options["kwargs"]["norm_layer"] = "rmsnorm"
    spec = StudentSpec(view=rms.view, preprocessing=rms.preprocessing, num_classes=3)
    student = STUDENTS["ssd_vit"](**options).build(spec)
    subclone(student, rms, UNIFORM)
    assert torch.equal(student.blocks[1].norm2.weight, rms.view.towers["image"].sublayers[3].norm.weight)


@pytest.mark.parametrize("asked", [Asked(), ASKED], ids=["alone", "clip"])
def test_patches_that_are_not_square(asked: Asked) -> None:
    shape = dict(img_size=(16, 32), patch_size=(4, 8), embed_dim=32, depth=1, num_heads=2, num_classes=3)
    teacher = adapt_teacher(timm.create_model("vit_tiny_patch16_224", **shape).eval())
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing, num_classes=3)
    with pytest.raises(UserError, match=rf"4 x 8 pixels, .* set {asked.at}\.kwargs\.patch_size=8$"):
        STUDENTS["vim"]().arguments(spec, asked)
