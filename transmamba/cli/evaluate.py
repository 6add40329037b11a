"""`transmamba evaluate`: a model measured on data, its teacher beside it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="RUN, STUDENT, a timm name, a Hugging Face id, an open_clip NAME/TAG or a file of weights",
    )
    parser.add_argument("--architecture", metavar="NAME", help="of a model that is a file of weights alone")
    parser.add_argument(
        "--task",
        help="of --data: image_classification (if left out), image_text, language or questions",
    )
    parser.add_argument(
        "--data", help="a name of the task's readers, a folder or a file; left out: what RUN was trained on"
    )
    parser.add_argument(
        "--teacher", help="measured beside it, with their agreement and how sure their differences are"
    )
    parser.add_argument(
        "--teacher-architecture", metavar="NAME", help="of a teacher that is a file of weights alone"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", help="cuda, cpu; left out: a GPU where there is one")
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="also write a page: numbers, and items with their pictures and answers; of a folder report.html "
        "in it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the page")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "options",
        nargs="*",
        metavar="key=value",
        help="reader options, such as root=/data/x; task.KEY=... for the task, as in a recipe: of image_text "
        "task.zero_shot.0.data=FOLDER, task.zero_shot.0.templates=FILE, task.probe=FOLDER; of language "
        "task.benchmarks.0.name=piqa, task.benchmarks.0.path=FOLDER; of questions task.controls=[]",
    )


def run(arguments: argparse.Namespace) -> int:
    from ..reporting.evaluation_page import place_of_page
    from ..reporting.progress import Display
    from ..reporting.table import results_table
    from ..runs.evaluate import prepare
    from .arguments import task_of

    page = None
    if arguments.report is not None:
        page = place_of_page(arguments.report, overwrite=arguments.overwrite)
    elif arguments.overwrite:
        raise UserError("--overwrite goes with --report FILE, which it replaces; leave it out")
    prepared = prepare(
        arguments.model,
        task_of(
            arguments.data,
            arguments.options,
            arguments.task,
            run=Path(arguments.model),
            split=arguments.split,
        ),
        teacher=arguments.teacher,
        architecture=arguments.architecture,
        teacher_architecture=arguments.teacher_architecture,
        split=arguments.split,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=arguments.device,
        precision=arguments.precision,
    )
    print(prepared, file=sys.stderr, flush=True)
    measured = prepared.measure(watch=Display().watch)
    results = measured.results()
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        name = "student" if arguments.teacher else "model"
        print(results_table(results, prepared.task.metrics, student=name))
    if page is not None:
        print(f"report: {prepared.report(measured, page)}", file=sys.stderr)
    return 0
