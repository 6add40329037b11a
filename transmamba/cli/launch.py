"""The command line of `recipes/*.py` and `transmamba distill`, and the one place where mistakes become exit
2."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transmamba_kernels import backend

from ..errors import UserError

USER_MISTAKE = 2
# Where all processes fail alike, the launcher ends the others within this time of the first one's exit.
SECONDS_BEFORE_REPEATING = 5.0


def recipe_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml", help="the recipe")
    parser.add_argument("--overwrite", action="store_true", help="replace another run in output_dir")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the recipe, print it resolved, and stop"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as stages.0.lr=1e-3")
    return parser


def run_recipe(arguments: argparse.Namespace) -> int:
    """Load, check and run the recipe; on the main process print the table of results."""
    import yaml

    from ..config import load as configs
    from ..runs.folder import RESULTS
    from ..runs.recipe import Recipe
    from ..runs.run import make_accelerator, run
    from ..training.trainer import Interrupted

    recipe = configs.load(Recipe, arguments.config, arguments.overrides)
    if arguments.dry_run:
        _write(yaml.safe_dump(configs.dump(recipe), sort_keys=False))
        return 0
    accelerator = make_accelerator(recipe)
    finished = (Path(recipe.output_dir) / RESULTS).is_file() and not arguments.overwrite
    try:
        results = run(recipe, overwrite=arguments.overwrite, accelerator=accelerator)
    except Interrupted:
        if accelerator.is_main_process:
            _write("stopped by SIGTERM, and saved; resume with the command that started it\n")
        return 0
    if accelerator.is_main_process:
        if finished:
            sys.stderr.write(f"{recipe.output_dir}: finished before; --overwrite starts anew\n")
        _write(results_table(results) + "\n")
        _write(f"student: {recipe.output_dir}/student\nreport:  {recipe.output_dir}/report.html\n")
    return 0


def guarded(main: Callable[[], int]) -> int:
    """Run `main`; a user's mistake, or a full disk, is said in one line, without a traceback."""
    try:
        _check_kernels()
        return main()
    except UserError as error:
        return _say_mistake(_prefixed(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Exception as error:  # safetensors and torch have errors of their own for a full disk
        if not _disk_is_full(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return _say_mistake(f"error: disk full: {first}; earlier checkpoints are whole")


def _say_mistake(line: str) -> int:
    """The first process speaks at once, another one only if it lives on: then the mistake is its alone."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(SECONDS_BEFORE_REPEATING)
        line = f"[rank {rank}] {line}"
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    return USER_MISTAKE


def _disk_is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(sign in str(error) for sign in ("os error 28", "No space left"))


def _check_kernels() -> None:
    """What the first scan would find out, after minutes of loading."""
    forced = os.environ.get(backend.VARIABLE, "")
    if forced and forced not in backend.PATHS:
        known = ", ".join(backend.PATHS)
        raise UserError(f"{backend.VARIABLE}={forced!r} names no path; write one of {known}, or unset it")


def main(argv: Sequence[str] | None = None, description: str | None = None) -> int:
    """What `recipes/distill.py` is."""
    parser = recipe_parser(argparse.ArgumentParser(description=description))
    return guarded(lambda: run_recipe(parser.parse_intermixed_args(argv)))


def results_table(results: dict[str, Any], student: str = "student") -> str:
    """teacher, student (under that name) and scratch side by side, as plain text."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None, show_edge=False, pad_edge=False)
    columns = [
        ("model", "<", lambda name, row: student if name == "student" else name),
        ("top-1 %", ">", lambda name, row: f"{row['top1']:.2f}"),
        ("top-5 %", ">", lambda name, row: f"{row['top5']:.2f}"),
        ("ECE %", ">", lambda name, row: f"{row['ece']:.2f}"),
        ("agreement %", ">", lambda name, row: _agreement(name, results)),
        ("parameters", ">", lambda name, row: f"{row['params']:,}"),
        ("images/s", ">", lambda name, row: f"{row['images_per_second']:,.0f}"),
        ("peak MiB", ">", lambda name, row: f"{row['peak_memory_mb']:,.0f}"),
        ("minutes", ">", lambda name, row: f"{row['minutes']:.1f}" if "minutes" in row else "-"),
    ]
    for title, align, _ in columns:
        table.add_column(title, justify="right" if align == ">" else "left", no_wrap=True)
    for name in ("teacher", "student", "scratch"):
        if name in results:
            table.add_row(*(show(name, results[name]) for _, _, show in columns))
    console = Console(width=110, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(table)
    return console.export_text(styles=False).rstrip()


def _agreement(name: str, results: dict[str, Any]) -> str:
    return f"{results['agreement']:.2f}" if name == "student" and "agreement" in results else "-"


def _prefixed(error: UserError) -> str:
    text = str(error)
    return text if text.startswith("config error") else f"error: {text}"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
