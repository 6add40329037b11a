"""A teacher from which a student cannot be made, and the students that it can have."""

from __future__ import annotations

from ..errors import WrongTeacher
from ..views.embeddings import Spliced
from ..views.view import View


def wrong_teacher(needs: str, view: View) -> WrongTeacher:
    """The error that says what kind of teacher there is.

    needs: what was asked for, such as `student clip needs a CLIP`
    """
    what, students = _kind(view)
    return WrongTeacher(
        f"{needs}; this one is {what}, whose students are {' and '.join(students)}: write --student "
        f"{students[0]}, or student.name={students[0]} in a recipe"
    )


def _kind(view: View) -> tuple[str, tuple[str, ...]]:
    if any(isinstance(tower.embedding, Spliced) for tower in view.towers.values()):
        return "a LLaVA", ("llava",)
    if "decoder" in view.towers:
        return "a language model", ("hybrid_lm", "window_lm")
    if "points" in view.towers:
        return "a model of points", ("sequence",)
    if "text" in view.towers or "text" in view.opaque:
        return "a model of images and texts", ("clip", "vim", "ssd_vit")
    return "an image model", ("vim", "ssd_vit")
