"""What earlier versions left in RUN, in today's words: all of it is of image classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.task import Listing, Matrix, Sample
from ..evaluation.classification_exhibits import Answers, exhibits, groups, sample
from .samples import Items

_MOST_OF_A_GROUP = 12


def is_earlier(arrays: Mapping[str, Any]) -> bool:
    """Whether the samples.npz is of a version that wrote `labels` and `student_pred`."""
    return {"labels", "student_pred"} <= arrays.keys()


def converted(
    arrays: Mapping[str, Any], split: str
) -> tuple[list[Sample], dict[str, list[Matrix | Listing]], list[Items]]:
    """Samples, exhibits by model and items of an earlier samples.npz.

    arrays: labels, student_pred, teacher_pred (N,) over the evaluated split, class_names (K,);
            images (M, H, W, 3) uint8 and image_index (M,), their places in the predictions
    """
    labels = arrays["labels"].astype(np.int64)
    index = np.arange(len(labels))
    answers = {
        name: Answers(index, labels, arrays[f"{name}_pred"].astype(np.int64))
        for name in ("student", "teacher")
        if f"{name}_pred" in arrays
    }
    names = class_names(arrays)
    shown = {name: list(exhibits(given, names, split)) for name, given in answers.items()}
    scores = {f"{name}/top1": 100.0 * (given.predicted == labels) for name, given in answers.items()}
    return _samples(arrays, answers, names), shown, [Items(index, scores)]


def class_names(arrays: Mapping[str, Any]) -> list[str]:
    """The names of the classes; where a run gave none, their numbers."""
    given = [str(name) for name in arrays.get("class_names", ())]
    keys = [key for key in ("labels", "student_pred", "teacher_pred") if key in arrays]
    most = 1 + max(int(arrays[key].max(initial=0)) for key in keys)
    return given + [str(index) for index in range(len(given), most)]


def _samples(arrays: Mapping[str, Any], answers: Mapping[str, Answers], names: Sequence[str]) -> list[Sample]:
    """The items whose pictures were kept, by what the models made of them."""
    if not {"images", "image_index"} <= arrays.keys():
        return []
    pictures = dict(zip(arrays["image_index"].tolist(), arrays["images"], strict=True))
    return [
        sample(title, place, answers, names, pictures[place])
        for title, places in groups(answers).items()
        for place in [place for place in places.tolist() if place in pictures][:_MOST_OF_A_GROUP]
    ]
