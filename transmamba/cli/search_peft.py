"""`transmamba search-peft`: which methods of an adapter, how large and how fast."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .mistakes import command_again


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="RECIPE.yaml",
        help="a recipe whose student is there (saved); its own adapter is tried first",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="the search's folder; left out: OUTPUT_DIR_search"
    )
    parser.add_argument("--trials", type=int, default=100, help="of each of the two steps (100)")
    parser.add_argument(
        "--budget",
        metavar="N|SHARE",
        help="parameters that may be trained, or a share of the student's, such as 1%%",
    )
    parser.add_argument("--methods", metavar="NAME,NAME", help="what is searched among; left out: all")
    parser.add_argument("--workers", type=int, default=1, help="processes that try side by side (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the choices (0)")
    parser.add_argument("--sampler", default="tpe", choices=("tpe", "random"), help="random: to compare with")
    parser.add_argument("--json", action="store_true", help="print the best trial as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as stages.0.lr=1e-3")


def run(arguments: argparse.Namespace) -> int:
    from ..config import load as configs
    from ..runs.run import load_recipe
    from ..runs.search_peft import BEST, Search, search_peft
    from ..training.interrupted import Interrupted

    recipe = load_recipe(arguments.config, arguments.overrides)
    again = command_again()
    base = Path(recipe.output_dir).expanduser()
    folder = arguments.output or base.with_name(f"{base.name}_search")
    methods = tuple(filter(None, (arguments.methods or "").split(",")))
    settings: dict[str, Any] = dict(trials=arguments.trials, budget=arguments.budget, seed=arguments.seed)
    settings |= {"sampler": arguments.sampler, "methods": methods}
    search = configs.parse(Search, settings, "search-peft")
    try:
        found = search_peft(recipe, search, folder, workers=arguments.workers)
    except Interrupted as stopped:
        how = f"with: {again}" if again else "with the command that started it"
        print(f"stopped by {stopped}; goes on {how}", file=sys.stderr)
        return stopped.code
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        names = ", ".join(method["name"] for method in found["methods"])
        print(f"best: {found['score']:g} with {found['parameters']:,} parameters: {names}")
    print(f"recipe: {folder / BEST}\npage:   {folder / 'search.html'}", file=sys.stderr)
    return 0
