"""`transmamba select-layers`: which of the teacher's attention layers a hybrid language model, or a LLaVA's
decoder, keeps."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from ..runs.layer_order import Score
    from ..runs.select_layers import Selection


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "student",
        help="RUN or STUDENT, aligned: a hybrid_lm without attention (attention_layers: []), or a llava with "
        "such a decoder",
    )
    parser.add_argument(
        "--keep", required=True, metavar="N,N", help="how many layers keep attention, such as 4,8,15"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the JSON to write")
    parser.add_argument("--teacher", help="left out: the run's own")
    parser.add_argument(
        "--data",
        help="a reader of texts or of questions, or a file that one knows; left out: what RUN was trained on",
    )
    parser.add_argument(
        "--task",
        choices=("language", "questions"),
        help="of --data; left out: language, or without --data the one of RUN",
    )
    parser.add_argument("--split", help="left out: the one that training was watched on")
    parser.add_argument(
        "--method",
        default="greedy",
        choices=("greedy", "single"),
        help="greedy: measured again beside those kept, n passes a layer that is kept; single: n passes, "
        "neighbours count half",
    )
    parser.add_argument("--tokens", type=int, help="of text that are read (65536)")
    parser.add_argument("--questions", type=int, help="that are read, with their answers (512)")
    parser.add_argument(
        "--recall-weight", type=float, help="of the KL on spans of text that come a second time (1)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="rows at a time (8)")
    parser.add_argument("--device", help="cuda, cpu; left out: a GPU where there is one")
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--json", action="store_true", help="print what is written instead of a table")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.add_argument(
        "options",
        nargs="*",
        metavar="key=value",
        help="reader options, such as train=FILE; task.KEY=... for the task, such as task.block=512",
    )


def run(arguments: argparse.Namespace) -> int:
    from ..reporting.progress import Display
    from ..runs.select_layers import select_layers
    from .arguments import task_of

    output: Path = arguments.output
    if output.exists() and not arguments.overwrite:
        raise UserError(f"-o {output} exists; write another file, or --overwrite")
    given = arguments.data is not None or arguments.options or arguments.task is not None
    student = Path(arguments.student)
    kind = arguments.task or ("language" if arguments.data else None)
    task: Any = task_of(arguments.data, arguments.options, kind, run=student) if given else None
    found = select_layers(
        arguments.student,
        _numbers(arguments.keep),
        teacher=arguments.teacher,
        task=task,
        split=arguments.split,
        tokens=arguments.tokens,
        questions=arguments.questions,
        recall_weight=arguments.recall_weight,
        method=arguments.method,
        batch_size=arguments.batch_size,
        device=arguments.device,
        precision=arguments.precision,
        watch=Display().watch,
    )
    found.save(output)
    print(json.dumps(found.as_dict(), indent=1) if arguments.json else table(found))
    if found.about["data"]["split"] == "test":
        print(
            "chosen on the test split, on which the student's results are not to be measured then; write "
            "--split validation or train where there is one",
            file=sys.stderr,
        )
    print(f"written: {output}", file=sys.stderr)
    return 0


def _numbers(text: str) -> list[int]:
    words = [word for word in text.split(",") if word]
    for word in words:
        if not word.isdecimal():
            raise UserError(f"--keep: {word!r} is no number of layers; write such as 4,8,15")
    return [int(word) for word in words]


def table(found: Selection) -> str:
    """Each layer alone, those in order beside the ones before them, and the choices; what is recalled where
    that was asked."""
    rows = [("no layer", found.none), *((f"layer {layer}", score) for layer, score in found.single.items())]
    rows += [
        (f"{count}: and layer {layer}", score)
        for count, (layer, score) in enumerate(zip(found.order, found.nested, strict=True), 1)
    ]
    recalled = found.about["data"]["words"]["recall"] > 0
    lines = [f"{'attention in':<24} {'KL':>9}" + recalled * f" {'recall KL':>10} {'recalled %':>11}"]
    lines += [_line(what, score, recalled) for what, score in rows]
    return "\n".join([*lines, *(f"keep {count}: {layers}" for count, layers in found.chosen.items())])


def _line(what: str, score: Score, recalled: bool) -> str:
    line = f"{what:<24} {score.kl:>9.4f}"
    return f"{line} {score.recall_kl:>10.4f} {score.recalled:>11.2f}" if recalled else line
