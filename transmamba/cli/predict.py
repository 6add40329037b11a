"""`transmamba predict`: what a model sees in images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .mistakes import USER_MISTAKE

if TYPE_CHECKING:
    from ..evaluation.predict import Prediction


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="RUN, STUDENT, a timm name, a Hugging Face id or a file of weights")
    parser.add_argument("--architecture", metavar="NAME", help="of a model that is a file of weights alone")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, or folders of them")
    parser.add_argument("--top", type=int, default=5, help="how many classes of each; 5 if left out")
    parser.add_argument("--device", help="cuda, cpu; left out: a GPU where there is one")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line an image")


def run(arguments: argparse.Namespace) -> int:
    from ..ecosystems.find import load_model, preprocessing_of
    from ..evaluation.cost import find_device
    from ..evaluation.predict import pictures, predict

    device, paths = find_device(arguments.device), pictures(arguments.images)
    model = load_model(arguments.model, arguments.architecture)
    found = predict(
        model,
        preprocessing_of(model),
        paths,
        names=_names(model, arguments.model),
        top=arguments.top,
        device=device,
    )
    said, refused = [], 0
    for prediction in found:
        if prediction.trouble is not None:
            refused += 1
            print(f"error: {prediction.path}: {prediction.trouble}", file=sys.stderr)
        elif not arguments.json:
            print(_line(prediction), flush=True)
        said.append(_plain(prediction))
    if arguments.json:
        print(json.dumps(said, indent=2))
    return USER_MISTAKE if refused else 0


def _line(prediction: Prediction) -> str:
    answers = [f"{name} {100 * share:.1f} %" for name, share in prediction.classes]
    return f"{prediction.path}: {', '.join(answers)}"


def _plain(prediction: Prediction) -> dict[str, Any]:
    if prediction.trouble is not None:
        return {"image": str(prediction.path), "error": prediction.trouble}
    answers = [{"class": name, "probability": share} for name, share in prediction.classes]
    return {"image": str(prediction.path), "classes": answers}


def _names(model: Any, source: str) -> Sequence[str] | None:
    """What the model's classes are called: by itself, else by the data that its run was trained on.

    None, said in a line, where nothing that is here tells.
    """
    from ..data.classes import names_of
    from ..runs.saved import run_of

    own = names_of(model)
    if own:
        return own
    run = run_of(source)
    try:
        return None if run is None else _names_of_run(model, run)
    except UserError as error:
        print(f"classes are numbers, for the run's data cannot be read: {error}", file=sys.stderr)
        return None


def _names_of_run(model: Any, run: Any) -> Sequence[str] | None:
    """Of the run's data, in the order of its teacher, which the student learnt."""
    from ..config.registry import TASKS, TEACHERS
    from ..ecosystems.find import preprocessing_of
    from ..runs.saved import has_part, saved_part

    task = saved_part(run, "task", TASKS).build(preprocessing_of(model))
    if has_part(run, "teacher"):
        task.check(saved_part(run, "teacher", TEACHERS).build(), "teacher")
    return getattr(task, "classes", None)
