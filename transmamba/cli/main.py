"""`transmamba convert | distill | evaluate | report | list | bench | push`: thin, each verb calls one
function."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, suggest
from .launch import guarded, recipe_parser, results_table, run_recipe


def main(argv: Sequence[str] | None = None) -> int:
    def go() -> int:
        chosen = _parser().parse_args(argv)
        if chosen.verb not in VERBS:
            raise UserError(f"unknown verb {chosen.verb!r}{suggest(chosen.verb, VERBS)}")
        verb = VERBS[chosen.verb]
        parser = argparse.ArgumentParser(prog=f"transmamba {chosen.verb}", description=verb.text)
        verb.add(parser)
        # not sub-parsers, which take key=value only before the first option
        return verb.run(parser.parse_intermixed_args(chosen.arguments))

    return guarded(go)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="transmamba",
        description="Turn a Transformer into a Mamba student.",
        epilog="\n".join(["verbs:", *(f"  {name:<10} {verb.text}" for name, verb in VERBS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", metavar="VERB")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="transmamba VERB --help")
    return parser


@dataclass(frozen=True)
class Verb:
    """What a verb runs, in a few words, and the arguments it adds to a parser."""

    run: Callable[[argparse.Namespace], int]
    text: str
    add: Callable[[argparse.ArgumentParser], Any]


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher", help="a folder, a timm name, a Hugging Face id, or a hustvl/Vim .pth")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument(
        "--student",
        default="vim",
        help="vim (if left out) or ssd_vit, of the teacher's shape, or a timm name",
    )
    parser.add_argument("--data", help="images to rank coordinates by and to average: see evaluate")
    parser.add_argument(
        "--layers", type=_layers, default="all", help="all, half, or a number of student layers to clone"
    )
    parser.add_argument("--mimic", action="store_true", help="identity convolutions, neutral gates")
    parser.add_argument("--fold", action="store_true", help="fold LayerNorms into the linears first")
    parser.add_argument(
        "--average", action="store_true", help="attention layers of a Vim begin as averages (and --mimic)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in OUT")
    parser.add_argument(
        "options",
        nargs="*",
        metavar="key=value",
        help="student options, such as gate_bias=true; the reader's with data. before, such as data.path=x",
    )


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="RUN, STUDENT, a timm name or a Hugging Face id")
    parser.add_argument("--task", default="image_classification")
    parser.add_argument(
        "--data", help="a reader's name, a folder, or an .npz; left out: what RUN was trained on"
    )
    parser.add_argument("--teacher", help="measured beside it, with their agreement")
    parser.add_argument("--split", default="test")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", help="cuda, cpu; left out: a GPU where there is one")
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "options", nargs="*", metavar="key=value", help="reader options, such as root=/data/x"
    )


def _push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="RUN or STUDENT")
    parser.add_argument("repo_id", help="such as me/vim-small-digits")
    parser.add_argument("--private", action="store_true")


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    from transmamba_kernels.bench import add_arguments

    parser.add_argument("what", choices=("recipe", "inference", "kernels"))
    recipe = parser.add_argument_group("bench recipe")
    recipe.add_argument("--config", metavar="RECIPE.yaml")
    recipe.add_argument("overrides", nargs="*", metavar="key=value")
    both = parser.add_argument_group("bench recipe, bench inference")
    both.add_argument("--steps", type=int, default=20, help="timed steps of each kind")
    both.add_argument("--json", action="store_true", help="print JSON instead of a table")
    inference = parser.add_argument_group("bench inference")
    inference.add_argument("--teacher", default="deit_small_patch16_224", help="a timm ViT, or its folder")
    inference.add_argument("--students", type=_words, default="vim,ssd_vit", help="such as vim,ssd_vit")
    inference.add_argument("--sizes", type=_words, default="224,448,896,1792", help="pixels, such as 224,448")
    inference.add_argument("--tokens", type=int, help="of a batch; 65536 on a GPU, else 1024 if left out")
    add_arguments(parser.add_argument_group("bench kernels"))


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", help="RUN")


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind", nargs="?", help="teachers, students, losses, tasks or readers; all if left out"
    )


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _layers(text: str) -> int | str:
    if text not in ("all", "half") and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither all, half nor a number of layers")
    return int(text) if text.isdigit() else text


def _convert(arguments: argparse.Namespace) -> int:
    from ..config import load as configs
    from ..subcloning.convert import convert_checkpoint
    from ..subcloning.subclone import SubcloneConfig
    from .arguments import pairs, task_of

    chosen = vars(arguments)
    init = {name: chosen[name] for name in ("layers", "mimic", "fold", "average")}
    init["mimic"] = arguments.mimic or arguments.average  # which builds on it
    init["importance"] = "activation" if arguments.data else "uniform"
    reader = [word.removeprefix("data.") for word in arguments.options if word.startswith("data.")]
    if reader and arguments.data is None:
        raise UserError(f"data.{reader[0]} is the reader's, and there is none; write --data and its name")
    report = convert_checkpoint(
        arguments.teacher,
        Path(arguments.out),
        student=arguments.student,
        data=task_of(arguments.data, reader) if arguments.data else None,
        init=configs.parse(SubcloneConfig, init, "convert"),
        overwrite=arguments.overwrite,
        options=pairs([word for word in arguments.options if not word.startswith("data.")]),
    )
    print(json.dumps(report.to_dict(), indent=1) if arguments.json else report)
    print(f"written: {arguments.out}", file=sys.stderr)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from ..api import evaluate
    from .arguments import task_of

    task = task_of(arguments.data, arguments.options, arguments.task, run=Path(arguments.model))
    results = evaluate(
        arguments.model,
        task,
        teacher=arguments.teacher,
        split=arguments.split,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=arguments.device,
        precision=arguments.precision,
    )
    name = "student" if arguments.teacher else "model"
    print(json.dumps(results, indent=2) if arguments.json else results_table(results, student=name))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from ..reporting.report import write_report

    print(write_report(Path(arguments.run_folder)))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from ..config import registry

    kinds = {
        "teachers": registry.TEACHERS,
        "students": registry.STUDENTS,
        "losses": registry.LOSSES,
        "tasks": registry.TASKS,
        "readers": registry.READERS,
    }
    if arguments.kind is not None and arguments.kind not in kinds:
        raise UserError(f"unknown kind {arguments.kind!r}; write one of {', '.join(kinds)}")
    for kind, parts in kinds.items():
        if arguments.kind in (None, kind):
            print(f"{kind}:")
            for name in parts:
                print(f"  {name}: {', '.join(registry.options(parts[name]))}")
    if arguments.kind in (None, "students"):
        from ..api import student_models

        print(f"student models (timm names): {', '.join(student_models())}")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from ..api import push_to_hub

    print(push_to_hub(arguments.model, arguments.repo_id, private=arguments.private))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.what == "kernels":
        return _bench_kernels(arguments)
    if arguments.what == "inference":
        return _bench_inference(arguments)
    if arguments.config is None:
        raise UserError("bench recipe measures a recipe; write --config RECIPE.yaml")
    from ..bench.step import bench_recipe, bench_table
    from ..config import load as configs
    from ..runs.recipe import Recipe

    result = bench_recipe(configs.load(Recipe, arguments.config, arguments.overrides), steps=arguments.steps)
    print(json.dumps(result, indent=2) if arguments.json else bench_table(result))
    return 0


def _bench_inference(arguments: argparse.Namespace) -> int:
    from ..bench.inference import COLUMNS, bench_inference, inference_line

    for word in [*arguments.overrides, *([arguments.config] if arguments.config else [])]:
        raise UserError(f"{word}: bench inference reads no recipe; leave it out")
    if not arguments.sizes:
        raise UserError("--sizes is empty; write pixels, such as 224,448")
    for size in arguments.sizes:
        if not size.isdecimal():
            raise UserError(f"--sizes: {size!r} is no number of pixels; write such as 224,448")
    rows = bench_inference(
        arguments.teacher,
        arguments.students,
        [int(size) for size in arguments.sizes],
        tokens=arguments.tokens,
        steps=arguments.steps,
        device=arguments.device,
    )
    if arguments.json:
        print(json.dumps(list(rows), indent=2))
        return 0
    print(inference_line(dict.fromkeys(COLUMNS)), flush=True)
    for row in rows:
        print(inference_line(row), flush=True)
    return 0


def _bench_kernels(arguments: argparse.Namespace) -> int:
    from transmamba_kernels.bench import run

    try:
        return run(arguments)
    except ValueError as error:
        raise UserError(str(error)) from error


VERBS = {
    "convert": Verb(_convert, "write a student that starts from a teacher's weights", _convert_arguments),
    "distill": Verb(run_recipe, "run a recipe on this process", recipe_parser),
    "evaluate": Verb(_evaluate, "measure a model, and its teacher beside it", _evaluate_arguments),
    "report": Verb(_report, "write RUN/report.html again", _report_arguments),
    "list": Verb(_list, "teachers, students, losses, tasks and readers, with their options", _list_arguments),
    "push": Verb(_push, "upload a student to the Hugging Face Hub", _push_arguments),
    "bench": Verb(_bench, "time a recipe's step, students beside a teacher, or kernels", _bench_arguments),
}


if __name__ == "__main__":
    sys.exit(main())
