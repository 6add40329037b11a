"""`transmamba convert`: a student that starts from a teacher's weights, without training."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .words import below, nested

if TYPE_CHECKING:
    from ..subcloning.subclone import SubcloneConfig

# where a student is no image classifier
_TASKS = {"clip": "image_text", "hybrid_lm": "language", "llava": "questions"}
# students with parts, whose options are written part.key=value
_PARTS = {"clip": ("image", "text"), "llava": ("image", "decoder", "cross")}
# short for init.KEY=true
_FLAGS = {
    "fold": "fold LayerNorms into the linears first",
    "mimic": "identity convolutions, neutral gates",
    "average": "attention layers of a Vim begin as averages (and --mimic)",
}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher", help="a folder, a timm name, a Hugging Face id, or a file of weights")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument(
        "--student",
        default="vim",
        help="vim (if left out) or ssd_vit, of the teacher's shape, a timm name, clip: both towers of a CLIP "
        "or SigLIP, hybrid_lm: of a language model, or llava: of a LLaVA",
    )
    parser.add_argument("--architecture", metavar="NAME", help="of a teacher that is a file of weights alone")
    parser.add_argument(
        "--data", help="images or texts to rank coordinates by and to begin with: see evaluate"
    )
    parser.add_argument("--layers", type=_layers, help="all, half, or a number of student layers to clone")
    for name, text in _FLAGS.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in OUT")
    parser.add_argument(
        "options",
        nargs="*",
        metavar="key=value",
        help="init.KEY=... as in a recipe; data.KEY=... for the reader, task.KEY=... (block) for how it is "
        "read; others for the student, such as gate_bias=true, or of a clip or llava image.kind=ssd_vit",
    )


def run(arguments: argparse.Namespace) -> int:
    from ..subcloning.checkpoint import convert_checkpoint
    from .arguments import task_of

    options: list[str] = arguments.options
    reader, init = below("data.", options), below("init.", options)
    reading = [word for word in options if word.startswith("task.")]
    _check_parts(options, arguments.student)
    if (given := [*(f"data.{word}" for word in reader), *reading]) and arguments.data is None:
        raise UserError(f"{given[0]} is the reader's, and there is none; write --data and its name")
    task = _TASKS.get(arguments.student, "image_classification")  # whose readers are meant
    named = {} if arguments.architecture is None else {"architecture": arguments.architecture}
    report = convert_checkpoint(
        arguments.teacher,
        Path(arguments.out),
        student=arguments.student,
        data=task_of(arguments.data, [*reader, *reading], task) if arguments.data else None,
        init=_init(arguments, init),
        overwrite=arguments.overwrite,
        options=nested([word for word in options if not word.startswith(("data.", "init.", "task."))]),
        **named,
    )
    print(json.dumps(report.to_dict(), indent=1) if arguments.json else report)
    if any(drop.source == "head.projection" for drop in report.dropped):
        print(
            "only the image tower, without its projection to the embedding: --student clip keeps both towers",
            file=sys.stderr,
        )
    print(f"written: {arguments.out}", file=sys.stderr)
    return 0


def _check_parts(options: list[str], student: str) -> None:
    """Raises UserError for an option of a part that this student does not have."""
    for word in options:
        part, dot, _ = word.partition("=")[0].partition(".")
        having = [name for name, parts in _PARTS.items() if part in parts]
        if dot and having and student not in having:
            raise UserError(
                f"{word} is an option of a {' or a '.join(having)}, not of {student}; add --student "
                f"{having[0] if len(having) == 1 else '{' + ','.join(having) + '}'}"
            )


def _init(arguments: argparse.Namespace, words: list[str]) -> SubcloneConfig:
    """How the student starts. Raises ConfigError as a recipe's `init` does."""
    from ..config import load as configs
    from ..config.file import apply_override
    from ..subcloning.subclone import SubcloneConfig

    flags: dict[str, Any] = {name: True for name in _FLAGS if getattr(arguments, name)}
    flags |= {"mimic": True} if arguments.average else {}  # which builds on it
    flags |= {} if arguments.layers is None else {"layers": arguments.layers}
    values = {"importance": "activation" if arguments.data else "uniform", **flags}
    for word in words:
        key = word.partition("=")[0]
        if key in flags:
            raise UserError(f"init.{word}: --{key} says that already; write one of the two")
        try:
            apply_override(values, word)
        except ValueError as error:
            raise UserError(f"init.{word}: {error}") from error
    # with an `init`, so that mistakes in it are told under that name
    holder = make_dataclass("Convert", [("init", SubcloneConfig)], frozen=True, kw_only=True)
    return configs.parse(holder, {"init": values}, "convert").init


def _layers(text: str) -> int | str:
    if text not in ("all", "half") and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither all, half nor a number of layers")
    return int(text) if text.isdigit() else text
