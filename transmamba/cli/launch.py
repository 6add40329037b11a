"""`transmamba distill` and `recipes/distill.py`: one recipe, from teacher to report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .mistakes import command_again, guarded
from .words import Parser, parsed


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml", help="the recipe")
    parser.add_argument("--overwrite", action="store_true", help="replace another run in output_dir")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the recipe, print it resolved, and stop"
    )
    parser.add_argument(
        "--check-data",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look through the evaluation splits before training, for what cannot be read",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as stages.0.lr=1e-3")


def main(argv: Sequence[str] | None = None, description: str | None = None) -> int:
    """What `recipes/distill.py` is."""
    parser = Parser(description=description, allow_abbrev=False)
    add(parser)
    return guarded(lambda: run(parsed(parser, argv)))


def run(arguments: argparse.Namespace) -> int:
    """Load, check and run the recipe; on the main process print the table of results."""
    import yaml

    from ..config import load as configs
    from ..reporting.metrics import RESULTS_FILE
    from ..runs.build import make_accelerator
    from ..runs.run import load_recipe
    from ..runs.run import run as run_recipe
    from ..training.interrupted import Interrupted

    recipe = load_recipe(arguments.config, arguments.overrides)
    if arguments.dry_run:
        _write(yaml.safe_dump(configs.dump(recipe), sort_keys=False))
        return 0
    again = command_again()  # now: whoever stops us may stop the launcher first
    accelerator = make_accelerator(recipe)
    folder = Path(recipe.output_dir).expanduser()
    finished = (folder / RESULTS_FILE).is_file() and not arguments.overwrite
    try:
        run_recipe(
            recipe,
            overwrite=arguments.overwrite,
            accelerator=accelerator,
            check_data=arguments.check_data,
        )
    except Interrupted as stopped:
        if accelerator.is_main_process:
            how = f"with: {again}" if again else "with the command that started it"
            _write(f"stopped by {stopped}, and saved; resume {how}\n")
        return stopped.code
    if accelerator.is_main_process:
        if finished:
            sys.stderr.write(f"{recipe.output_dir}: finished before; --overwrite starts anew\n")
        _write(f"{_table(folder / RESULTS_FILE)}\n")
        if recipe.leaves == "all":
            _write(f"student: {recipe.output_dir}/student\nreport:  {recipe.output_dir}/report.html\n")
    return 0


def _table(path: Path) -> str:
    from ..reporting.metrics import metrics_of, read_results
    from ..reporting.table import results_table

    results: dict[str, Any] = read_results(path)
    return results_table(results, metrics_of(results))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
