"""`transmamba predict`: what a model sees in images, or answers to a question about each."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .mistakes import USER_MISTAKE

if TYPE_CHECKING:
    from ..evaluation.predict import Prediction

# classes of each picture
_USUAL = 5


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="RUN, STUDENT, a timm name, a Hugging Face id, an open_clip NAME/TAG or a file of weights",
    )
    parser.add_argument("--architecture", metavar="NAME", help="of a model that is a file of weights alone")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, or folders of them")
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="TEXT",
        help='of a CLIP: what to choose from, such as "a cat" "a dog", or a file with a text a line; after '
        "the images",
    )
    parser.add_argument(
        "--templates",
        metavar="FILE",
        help="of a CLIP: sentences, one a line, with {c} where a label goes; left out: the labels alone",
    )
    parser.add_argument(
        "--question",
        metavar="TEXT",
        help='of a LLaVA: what is asked of each picture, such as "which colour is it?"; put as RUN puts '
        "questions, of another model as `evaluate --task questions` does",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        help="of an answer at most, with --question; as many as RUN's, or 16, if left out",
    )
    parser.add_argument("--top", type=int, help="how many classes of each; 5 if left out")
    parser.add_argument("--device", help="cuda, cpu; left out: a GPU where there is one")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line an image")


def run(arguments: argparse.Namespace) -> int:
    said, refused = [], 0
    for prediction in _predictions(arguments):
        if prediction.trouble is not None:
            refused += 1
            print(f"error: {prediction.path}: {prediction.trouble}", file=sys.stderr)
        elif not arguments.json:
            print(_line(prediction), flush=True)
        said.append(_plain(prediction))
    if arguments.json:
        print(json.dumps(said, indent=2))
    return USER_MISTAKE if refused else 0


def _predictions(arguments: argparse.Namespace) -> Iterator[Prediction]:
    """Raises UserError where the model and what it is asked for do not fit each other."""
    from ..core.preprocessing import PicturesAndText
    from ..core.text import TextOnly
    from ..ecosystems.find import load_model, preprocessing_of
    from ..evaluation.cost import find_device
    from ..evaluation.predict import pictures, predict

    device, paths, source = find_device(arguments.device), pictures(arguments.images), arguments.model
    _check_options(arguments)
    model = load_model(source, arguments.architecture)
    if arguments.question is not None:
        return _of_question(model, arguments, paths, device)
    if arguments.labels is not None:
        return _of_texts(model, arguments, paths, device)
    if _has_two_towers(model):
        raise UserError(
            f"{source} is a {type(model).__name__}, which has no classes but compares pictures with texts; "
            'say which after the images: --labels "a cat" "a dog"'
        )
    names, looks = _names(model, source), preprocessing_of(model)
    if isinstance(looks, TextOnly):
        raise UserError(f"{source} is a {type(model).__name__}, which reads texts; name a model of images")
    if isinstance(looks, PicturesAndText):
        raise UserError(
            f"{source} is a {type(model).__name__}, which has no classes but answers questions; ask one "
            'after the images: --question "what is this?"'
        )
    _refuse_without_words(model, source)
    return predict(model, looks, paths, names=names, top=_top(arguments), device=device)


def _top(arguments: argparse.Namespace) -> int:
    return _USUAL if arguments.top is None else int(arguments.top)


def _check_options(arguments: argparse.Namespace) -> None:
    """Raises UserError for options of which one alone means nothing, or that exclude each other."""
    if arguments.templates is not None and arguments.labels is None:
        raise UserError("--templates goes with --labels, which say what to choose from; write both")
    if arguments.tokens is not None and arguments.question is None:
        raise UserError("--tokens goes with --question, whose answer has so many at most; write both")
    if arguments.question is not None:
        for name in ("labels", "top"):
            if getattr(arguments, name) is not None:
                raise UserError(
                    f"--{name} does not go with --question, which is answered in writing; write one"
                )


def _refuse_without_words(model: Any, source: str) -> None:
    """Raises UserError for a LLaVA of which nothing says how it reads texts."""
    config = getattr(model, "config", None)
    if hasattr(config, "text_config") and hasattr(config, "image_token_id"):
        raise UserError(
            f"{source} is a {type(model).__name__}, which answers questions, but no tokenizer lies beside "
            "it; put its tokenizer.json there"
        )


def _of_question(model: Any, arguments: argparse.Namespace, paths: Sequence[Path], device: Any) -> Any:
    """Answers in writing to what `--question` asks."""
    from ..core.preprocessing import PicturesAndText
    from ..evaluation.predict_answers import predict_answers
    from ..evaluation.run import ModelRunner
    from ..runs.evaluate import as_run
    from ..tasks.question_fit import asking_of

    source, what = arguments.model, type(model).__name__
    run, looks = as_run(model)
    if not isinstance(looks, PicturesAndText):
        _refuse_without_words(model, source)
        does = "compares pictures with texts" if _has_two_towers(model) else "answers no questions about them"
        instead = "write --labels in its place" if _has_two_towers(model) else "leave --question out"
        raise UserError(f"--question: {source} is a {what}, which {does}; {instead}, or name a LLaVA")
    task = _task_of(source)
    room = task.room if arguments.tokens is None else arguments.tokens
    asking = asking_of(looks, dataclasses.replace(task.style, pictures=True), task.context)
    return predict_answers(ModelRunner(run.to(device), device), asking, paths, arguments.question, room)


def _task_of(source: str) -> Any:
    """How a run's data put their questions; of another model, as the task is where nothing is written."""
    from ..config.registry import TASKS
    from ..runs.saved import run_of, saved_part
    from ..tasks.questions import QuestionsConfig

    run = run_of(source)
    found = None if run is None else saved_part(run, "task", TASKS)
    return found if isinstance(found, QuestionsConfig) else QuestionsConfig(data=None)


def _has_two_towers(model: Any) -> bool:
    """Whether it embeds images and texts: a model of open_clip's, a Hugging Face CLIP or SigLIP."""
    return any(hasattr(model, f"{way}_text{end}") for way, end in (("encode", ""), ("get", "_features")))


def _of_texts(model: Any, arguments: argparse.Namespace, paths: Sequence[Path], device: Any) -> Any:
    """By the texts that `--labels` say."""
    from ..core.tower import similarity_scalars
    from ..ecosystems.find import preprocessing_of
    from ..evaluation.predict_texts import AS_IT_IS, predict_texts, read_labels
    from ..evaluation.run import ModelRunner
    from ..evaluation.zero_shot import described, read_templates

    if not _has_two_towers(model):
        raise UserError(
            f"--labels: {arguments.model} is a {type(model).__name__}, which reads no texts; leave --labels "
            "out, or name a CLIP"
        )
    labels = read_labels(arguments.labels)
    templates = AS_IT_IS if arguments.templates is None else read_templates(arguments.templates)
    if hasattr(model, "encode_image"):
        looks, scalars = preprocessing_of(model), similarity_scalars(model)
        runner = ModelRunner(model.to(device), device)
    else:  # of transformers: run as the teacher that it is read as
        from ..teachers.load import load_teacher

        teacher = load_teacher(arguments.model).to(device)
        looks, scalars = teacher.preprocessing, dict(teacher.view.scalars)
        runner = ModelRunner(teacher, device, kind="teacher")
    _say_cut([text for label in labels for text in described(label, templates)], looks.text)
    return predict_texts(
        runner, looks, paths, labels, scalars=scalars, templates=templates, top=_top(arguments)
    )


def _say_cut(texts: Sequence[str], tokenizer: Any) -> None:
    cut = 0 if tokenizer is None else tokenizer(texts).truncated
    if cut:
        print(
            f"{cut} of {len(texts)} texts are longer than the model's {tokenizer.context} tokens and are cut",
            file=sys.stderr,
        )


def _line(prediction: Prediction) -> str:
    if prediction.answer is not None:
        return f"{prediction.path}: {' '.join(prediction.answer.split())}"
    answers = [f"{name} {100 * share:.1f} %" for name, share in prediction.classes]
    return f"{prediction.path}: {', '.join(answers)}"


def _plain(prediction: Prediction) -> dict[str, Any]:
    if prediction.trouble is not None:
        return {"image": str(prediction.path), "error": prediction.trouble}
    if prediction.answer is not None:
        return {"image": str(prediction.path), "answer": prediction.answer, "written": prediction.written}
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
