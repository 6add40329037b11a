"""A recipe whose teacher is trained first: what can be wrong with either is looked for before that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import load as configs
from ..ecosystems.find import save_model
from ..ecosystems.folders import STUDENT_FOLDER
from ..errors import UserError
from .build import assemble
from .folder import UNTRAINED
from .pipeline import Pipeline
from .recipe import Recipe


def check_teaching(teaching: Recipe, recipe: Recipe, source: str) -> None:
    """Raises UserError for a teacher's recipe that does not serve this one."""
    if teaching.trainer.precision != recipe.trainer.precision:
        raise UserError(
            f"{source} trains with precision {teaching.trainer.precision}, this recipe with "
            f"{recipe.trainer.precision}; run it by itself first: recipes/distill.py --config {source}"
        )
    if teaching.leaves != "all":
        raise UserError(f"{source} leaves {teaching.leaves} and no teacher; write leaves: all there")
    model = getattr(recipe.teacher, "model", None)
    made = Path(teaching.output_dir).expanduser().resolve()
    if model is not None and Path(model).expanduser().resolve() not in (made, made / STUDENT_FOLDER):
        raise UserError(
            f"teacher_recipe {source} makes {teaching.output_dir}, but teacher.model is {model}; write the "
            "same folder in both, or teacher_recipe=null for a teacher that is there already"
        )


@contextmanager
def said_of(source: str) -> Iterator[None]:
    """Within it what is wrong is said of the teacher's recipe."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"teacher_recipe {source}: {error} (of the teacher's own run: recipes/distill.py --config "
            f"{source}); teacher_recipe=null takes the teacher that is there"
        ) from error


def check_taught(recipe: Recipe, teaching: Recipe, source: str, accelerator: Any) -> None:
    """Raises UserError for what of a recipe's own parts and stages cannot be, found with the teacher to come
    as it is before its first step, which lies in the run's folder meanwhile. Nothing of either is stored: a
    store takes as long as the training, and of a teacher that is not trained it would be another's.

    A teacher that is itself taught, or merged with an adapter in the end, is not made up: then all this is
    found when it is there.
    """
    place = Path(recipe.output_dir).expanduser() / UNTRAINED
    asked = _read_from(recipe, Path(teaching.output_dir), place)
    if asked is None or teaching.teacher_recipe is not None or teaching.adapter is not None:
        return
    try:
        with said_of(source):
            _write_untrained(teaching, place, accelerator)
        Pipeline(assemble(asked, accelerator, quiet=True, stores=False)).check_stages()
        accelerator.wait_for_everyone()  # others may still be reading it
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(place, ignore_errors=True)


def _write_untrained(teaching: Recipe, place: Path, accelerator: Any) -> None:
    parts = assemble(teaching, accelerator, quiet=True, stores=False)
    if accelerator.is_main_process:
        save_model(parts.student, place, parts.task.preprocessing)
    accelerator.wait_for_everyone()


def _read_from(recipe: Recipe, made: Path, place: Path) -> Recipe | None:
    """The same with a teacher that is read from `place`; None where it names no folder of its teacher's
    run."""
    folders = {_where(str(folder)) for folder in (made, made / STUDENT_FOLDER)}

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(each) for key, each in value.items()}
        if isinstance(value, list):
            return [moved(each) for each in value]
        return str(place) if isinstance(value, str) and _where(value) in folders else value

    plain = configs.dump(replace(recipe, teacher_recipe=None))
    values = moved(plain)
    return None if values == plain else configs.parse(Recipe, values, recipe.output_dir)


def _where(text: str) -> str:
    """Which file a text would name, however it is written: as `check_teaching` compares them. Most texts are
    no paths, and nothing is too odd to be asked."""
    home = os.path.expanduser(text)  # noqa: PTH111 - Path's own raises for ~ and no user's name
    return text if "\0" in text else os.path.realpath(home)
